//! [`Queue`]: a stream with its kernels and a workspace.

#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::thread::ThreadId;

use cudarc::driver::{CudaSlice, CudaStream};

use super::device::Device;
use super::driver::driver_error;
use crate::error::{Error, Result};

/// A CUDA stream with the kernels of its context and a workspace. Calls are launched on a queue.
///
/// The workspace is device memory for partial sums. Launches on one stream run one after the other, so one workspace that
/// is large enough for the largest call serves all of them.
///
/// A queue is `Send` and `Sync`. A launch takes it by `&mut`.
#[derive(Debug)]
pub struct Queue {
    device: Device,
    stream: Arc<CudaStream>,
    workspace: Option<Owned<u8>>,
    /// The thread that made the queue, if the stream is the per-thread default stream, whose handle means another stream in
    /// each thread.
    thread: Option<ThreadId>,
}

/// Device memory that was allocated on the stream of a queue and may be dropped in any thread. If the stream handle means
/// another stream in that thread, freeing would not wait for the launches that use the memory, so `drop` first waits for the
/// whole context.
#[derive(Debug)]
pub(super) struct Owned<T> {
    slice: ManuallyDrop<CudaSlice<T>>,
    thread: Option<ThreadId>,
}

impl<T> Deref for Owned<T> {
    type Target = CudaSlice<T>;

    fn deref(&self) -> &CudaSlice<T> {
        &self.slice
    }
}

impl<T> DerefMut for Owned<T> {
    fn deref_mut(&mut self) -> &mut CudaSlice<T> {
        &mut self.slice
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // If waiting fails, the context is broken, and its memory cannot be freed.
        if is_here(self.thread) || self.slice.context().synchronize().is_ok() {
            // SAFETY: the slice is not used again.
            unsafe { ManuallyDrop::drop(&mut self.slice) };
        }
    }
}

/// Whether a per-thread stream of `thread` is the same stream in the current thread. True for other streams (`None`).
fn is_here(thread: Option<ThreadId>) -> bool {
    thread.is_none_or(|thread| thread == std::thread::current().id())
}

/// The parts of a queue that a launch needs.
pub(super) struct Parts<'a> {
    pub(super) device: &'a Device,
    pub(super) stream: &'a CudaStream,
    pub(super) workspace: Option<&'a mut CudaSlice<u8>>,
}

impl Queue {
    /// Makes a queue on `stream`, with the kernels of its context and no workspace.
    ///
    /// # Errors
    /// [`Error::KernelsNotBuilt`], [`Error::NoDriver`] or [`Error::Driver`].
    pub fn new(stream: &Arc<CudaStream>) -> Result<Queue> {
        Ok(Queue {
            device: Device::from_context(stream.context())?,
            stream: stream.clone(),
            workspace: None,
            thread: is_per_thread(stream).then(|| std::thread::current().id()),
        })
    }

    /// Returns the device of the queue.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Returns the stream of the queue.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Returns the size of the workspace in bytes.
    pub fn workspace_bytes(&self) -> u64 {
        (self.workspace.as_ref()).map_or(0, |workspace| workspace.num_bytes() as u64)
    }

    /// Enlarges the workspace to at least `bytes`. `workspace_bytes` of a call says how many bytes it needs. No other method
    /// of a queue allocates.
    ///
    /// A graph that was captured before still has the address of the old workspace, which is freed, so reserve before a
    /// capture.
    ///
    /// # Errors
    /// [`Error::Driver`], for example when memory is short, or [`Error::WrongThread`]. The workspace is then unchanged.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        self.check_thread()?;
        if bytes <= self.workspace_bytes() {
            return Ok(());
        }
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        // SAFETY: the contents are undefined, and the kernels write every partial before they read it.
        let workspace = unsafe { self.stream.alloc::<u8>(bytes) }
            .map_err(|e| driver_error("allocating a workspace", e))?;
        self.workspace = Some(self.own(workspace));
        Ok(())
    }

    /// Loads all kernels now: see [`Device::preload`].
    ///
    /// # Errors
    /// As [`Device::preload`].
    pub fn preload(&self) -> Result<()> {
        self.device.preload()
    }

    /// Wraps memory that was allocated on the stream of this queue.
    pub(super) fn own<T>(&self, slice: CudaSlice<T>) -> Owned<T> {
        Owned {
            slice: ManuallyDrop::new(slice),
            thread: self.thread,
        }
    }

    /// Fails if the handle means another stream in the current thread.
    pub(super) fn check_thread(&self) -> Result<()> {
        if is_here(self.thread) {
            Ok(())
        } else {
            Err(Error::WrongThread)
        }
    }

    pub(super) fn parts(&mut self) -> Result<Parts<'_>> {
        self.check_thread()?;
        Ok(Parts {
            device: &self.device,
            stream: &self.stream,
            workspace: self.workspace.as_deref_mut(),
        })
    }
}

/// Whether the stream is the per-thread default stream.
fn is_per_thread(stream: &CudaStream) -> bool {
    /// `CU_STREAM_PER_THREAD` of cuda.h.
    const CU_STREAM_PER_THREAD: usize = 2;
    stream.cu_stream() as usize == CU_STREAM_PER_THREAD
}
