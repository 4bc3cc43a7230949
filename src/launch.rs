//! The one place that launches kernels.

#![allow(unsafe_code)]

use cudarc::driver::sys::CUstream;
use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

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

/// Launches `entry` with `blocks` blocks of [`BLOCK`] threads on `stream`, each with `shared_bytes` of
/// dynamic shared memory. Does not allocate, synchronise or choose a stream; loads the entry if
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
    blocks: u32,
    shared_bytes: u32,
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
        cudarc::driver::result::launch_kernel(
            function.cu_function(),
            (blocks, 1, 1),
            (BLOCK as u32, 1, 1),
            shared_bytes,
            stream,
            &mut params,
        )
    }
    .map_err(|e| driver_error(doing, e))
}
