//! The one place that launches kernels.

#![allow(unsafe_code)]

use cudarc::driver::sys::{self, CUstream};
use cudarc::driver::{CudaFunction, DeviceRepr, ValidAsZeroBits};

use crate::device::{Device, driver_error};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::geometry::BLOCK;

pub use crate::blocks::*;

// SAFETY: structs of numbers without padding, laid out by the C rules on both sides.
unsafe impl DeviceRepr for RowStats {}
// SAFETY: as above.
unsafe impl DeviceRepr for CrossEntropySummary {}
// SAFETY: every field is a number, of which all bits zero is one.
unsafe impl ValidAsZeroBits for RowStats {}
// SAFETY: as above.
unsafe impl ValidAsZeroBits for CrossEntropySummary {}

/// A kernel entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    /// Stem of the op and of its file.
    pub(crate) stem: &'static str,
    /// What it computes of the op.
    pub(crate) task: &'static str,
    /// The type of the tensors, unless the entry touches none of them.
    pub(crate) dtype: Option<Dtype>,
}

impl Entry {
    /// `<stem>_<task>[_<dtype>]`, the name in the PTX.
    pub(crate) fn name(&self) -> String {
        let Entry { stem, task, dtype } = self;
        match dtype {
            Some(dtype) => format!("{stem}_{task}_{dtype}"),
            None => format!("{stem}_{task}"),
        }
    }

    /// The oldest target whose image has it: compute capability times ten.
    pub(crate) fn target(&self) -> u32 {
        if self.task == crate::loss::cross_entropy::CLUSTER {
            90
        } else {
            80
        }
    }
}

/// Every entry of the crate.
pub(crate) fn entries() -> impl Iterator<Item = Entry> {
    crate::activation::entries().chain(crate::loss::entries())
}

/// The names that the embedded PTX must hold, for the test that compares them.
#[doc(hidden)]
pub fn entry_names() -> Vec<String> {
    entries().map(|entry| entry.name()).collect()
}

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

/// Launches `entry` on `stream`. Does not allocate, synchronise or choose a stream; loads the entry if
/// [`Device::preload`] has not.
///
/// # Safety
/// - `args` is the parameter block of `entry`, filled as the kernel expects;
/// - every buffer in it is live on the device's context, of the size that the shape in `args` says,
///   until the launch has completed, and nobody else writes it (or reads what it writes) meanwhile;
/// - `stream` is a live stream of the device's context, or a default-stream handle.
pub(crate) unsafe fn launch<A: KernelArgs>(
    device: &Device,
    stream: CUstream,
    entry: Entry,
    grid: Grid,
    args: &A,
) -> Result<()> {
    let function = device.function(entry)?;
    let doing = "launching a kernel";
    device
        .context()
        .bind_to_thread()
        .map_err(|e| driver_error(doing, e))?;
    let mut params = [std::ptr::from_ref(args).cast_mut().cast()];
    // SAFETY: the caller vouches for stream, buffers and the match of `args` and `entry`; the layout
    // of `args` is that of the kernel's parameter because both are generated from src/args.rs. The
    // driver copies the block before it returns and does not write it.
    unsafe {
        if grid.cluster == 1 {
            cudarc::driver::result::launch_kernel(
                function.cu_function(),
                (grid.blocks, 1, 1),
                (BLOCK as u32, 1, 1),
                grid.shared_bytes,
                stream,
                &mut params,
            )
        } else {
            let mut attribute = cluster_attribute(grid.cluster);
            let config = cluster_config(grid, &mut attribute, stream);
            // Every driver of a device that has clusters has this call.
            let extra = std::ptr::null_mut();
            sys::cuLaunchKernelEx(&config, function.cu_function(), params.as_mut_ptr(), extra)
                .result()
        }
    }
    .map_err(|e| driver_error(doing, e))
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
fn cluster_config(
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
fn cluster_attribute(blocks: u32) -> sys::CUlaunchAttribute {
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
