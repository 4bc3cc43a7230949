//! [`Grid`]: the number of blocks of a launch, its clusters and its shared memory.

#![allow(unsafe_code)]

use cudarc::driver::CudaFunction;
use cudarc::driver::sys::{self, CUstream};

use super::driver::driver_error;
use crate::error::Result;
use crate::geometry::BLOCK;

/// The number of blocks of a launch, its clusters and its shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// The number of blocks of [`BLOCK`] threads, a multiple of `cluster`.
    pub(crate) blocks: u32,
    /// The number of blocks of a cluster; 1 without clusters. More than 1 needs compute capability 9.0.
    pub(crate) cluster: u32,
    /// The bytes of dynamic shared memory of each block.
    pub(crate) shared_bytes: u32,
}

impl Grid {
    /// A grid without clusters and dynamic shared memory.
    pub(crate) fn of_blocks(blocks: u32) -> Grid {
        Grid {
            blocks,
            cluster: 1,
            shared_bytes: 0,
        }
    }
}

/// The number of blocks of `function`, each with `shared_bytes` of dynamic shared memory, that a multiprocessor holds at once.
pub(crate) fn active_blocks(function: &CudaFunction, shared_bytes: u32) -> Result<u32> {
    function
        .occupancy_max_active_blocks_per_multiprocessor(BLOCK as u32, shared_bytes as usize, None)
        .map_err(|e| driver_error("asking how many blocks fit", e))
}

/// The number of clusters of `grid.cluster` blocks of `function` that the device runs at once; 0 if none fits.
pub(crate) fn active_clusters(function: &CudaFunction, grid: Grid) -> Result<u32> {
    let mut clusters = 0;
    let mut attribute = cluster_attribute(grid.cluster);
    let config = cluster_config(grid, &mut attribute, std::ptr::null_mut());
    // SAFETY: the handle is live, since `function` keeps its module; the configuration and its attribute outlive the
    // call, which writes one number. Every driver of a device that has clusters has this call.
    let status = unsafe {
        sys::cuOccupancyMaxActiveClusters(&mut clusters, function.cu_function(), &config)
    };
    match status {
        sys::CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE => Ok(0),
        status => match status.result() {
            Ok(()) => Ok(clusters as u32),
            Err(e) => Err(driver_error("asking how many clusters fit", e)),
        },
    }
}

/// The launch configuration of a grid with clusters. It has a pointer to `attribute`.
pub(super) fn cluster_config(
    grid: Grid,
    attribute: &mut sys::CUlaunchAttribute,
    stream: CUstream,
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: grid.blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: BLOCK as u32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: grid.shared_bytes,
        hStream: stream,
        attrs: attribute,
        numAttrs: 1,
    }
}

/// The launch attribute for clusters of `blocks` blocks along x.
pub(super) fn cluster_attribute(blocks: u32) -> sys::CUlaunchAttribute {
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                x: blocks,
                y: 1,
                z: 1,
            },
        },
    }
}
