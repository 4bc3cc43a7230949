//! The only function that launches kernels.

#![allow(unsafe_code)]

use cudarc::driver::sys::{self, CUstream};

use super::device::{Device, Function};
use super::driver::driver_error;
use super::grid::{Grid, cluster_attribute, cluster_config};
use crate::blocks::KernelArgs;
use crate::error::Result;
use crate::geometry::BLOCK;

/// Launches `function` on `stream`. It never allocates, synchronises or chooses a stream.
///
/// # Safety
/// - `args` is the parameter block of `function`, filled as the kernel expects;
/// - every buffer in it is live on the device's context, of the size that the shape in `args` says,
///   until the launch has completed, and nobody else writes it (or reads what it writes) meanwhile;
/// - `stream` is a live stream of the device's context, or a default-stream handle.
pub(crate) unsafe fn launch<A: KernelArgs>(
    device: &Device,
    stream: CUstream,
    function: &Function,
    grid: Grid,
    args: &A,
) -> Result<()> {
    let doing = "launching a kernel";
    device
        .context()
        .bind_to_thread()
        .map_err(|e| driver_error(doing, e))?;
    let mut params = [std::ptr::from_ref(args).cast_mut().cast()];
    // SAFETY: the caller vouches for stream, buffers and the match of `args` and `function`; the layout
    // of `args` is that of the kernel's parameter because both are generated from src/args.rs. The
    // driver copies the block before it returns and does not write it.
    unsafe {
        if grid.cluster == 1 {
            cudarc::driver::result::launch_kernel(
                function.function.cu_function(),
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
            sys::cuLaunchKernelEx(
                &config,
                function.function.cu_function(),
                params.as_mut_ptr(),
                extra,
            )
            .result()
        }
    }
    .map_err(|e| driver_error(doing, e))
}
