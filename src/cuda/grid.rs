//! The blocks of a launch.

#![allow(unsafe_code)]

use cudarc::driver::CudaFunction;
use cudarc::driver::sys::{self, CUstream};

use super::driver::driver_error;
use crate::error::Result;
use crate::geometry::BLOCK;

/// The blocks of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// How many, of [`BLOCK`] threads each: a multiple of `cluster`.
    pub(crate) blocks: u32,
    /// Blocks of a cluster; 1 where there are none. More need compute capability 9.0.
    pub(crate) cluster: u32,
    /// Dynamic shared memory of each block.
    pub(crate) shared_bytes: u32,
}

impl Grid {
    /// Blocks that share nothing and need no dynamic shared memory.
    pub(crate) fn of_blocks(blocks: u32) -> Grid {
        Grid {
            blocks,
            cluster: 1,
            shared_bytes: 0,
        }
    }
}

/// How many blocks of `function` a multiprocessor holds at once, each with so much dynamic shared memory.
pub(crate) fn active_blocks(function: &CudaFunction, shared_bytes: u32) -> Result<u32> {
    function
        .occupancy_max_active_blocks_per_multiprocessor(BLOCK as u32, shared_bytes as usize, None)
        .map_err(|e| driver_error("asking for the room for blocks", e))
}

/// How many clusters of `grid.cluster` blocks of `function` the device runs at once; 0 if it has no room for one.
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
            Err(e) => Err(driver_error("asking for the room for clusters", e)),
        },
    }
}

/// A launch of clusters; it borrows `attribute`.
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

/// Clusters of so many blocks along x.
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
