//! Where calls go.

#![allow(unsafe_code)]

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::thread::ThreadId;

use cudarc::driver::{CudaSlice, CudaStream};

use super::device::Device;
use super::driver::driver_error;
use crate::error::{Error, Result};

/// Where calls go: the kernels of a context, a stream of it, and the workspace of the calls, device memory for partial
/// sums. Launches on a stream use it one after the other, so one workspace, as large as the largest call needs, serves
/// any number of calls.
///
/// A queue is `Send` and `Sync`; a launch takes it mutably.
#[derive(Debug)]
pub struct Queue {
    device: Device,
    stream: Arc<CudaStream>,
    workspace: Option<Owned<u8>>,
    /// The creating thread, if the stream is the per-thread default one: there the same handle means
    /// another stream in each thread.
    thread: Option<ThreadId>,
}

/// Device memory of a queue, or made by one, which may be dropped in any thread. Where the handle of its stream means
/// another stream there, freeing would not wait for the launches that use the memory, so the context is waited for.
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
        // A context that cannot be waited for is broken: the memory goes with it.
        if is_here(self.thread) || self.slice.context().synchronize().is_ok() {
            // SAFETY: the slice is not used again.
            unsafe { ManuallyDrop::drop(&mut self.slice) };
        }
    }
}

/// Whether a stream of this thread, or of any, is the same stream here.
fn is_here(thread: Option<ThreadId>) -> bool {
    thread.is_none_or(|thread| thread == std::thread::current().id())
}

/// The parts of a queue, for a launch in this thread.
pub(super) struct Parts<'a> {
    pub(super) device: &'a Device,
    pub(super) stream: &'a CudaStream,
    pub(super) workspace: Option<&'a mut CudaSlice<u8>>,
}

impl Queue {
    /// A queue on `stream`, with the kernels of its context and without a workspace.
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

    /// The kernels.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Bytes of the workspace.
    pub fn workspace_bytes(&self) -> u64 {
        (self.workspace.as_ref()).map_or(0, |workspace| workspace.num_bytes() as u64)
    }

    /// Makes the workspace at least so large; the `workspace_bytes` of a call says how many bytes it needs. Nothing else
    /// of a queue allocates. What was captured into a graph before keeps using the old workspace, so reserve first.
    ///
    /// # Errors
    /// [`Error::Driver`], for example when memory is short, or [`Error::WrongThread`]; the workspace is then as it was.
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

    /// Loads every kernel now: see [`Device::preload`].
    ///
    /// # Errors
    /// As there.
    pub fn preload(&self) -> Result<()> {
        self.device.preload()
    }

    /// Memory that was allocated on the stream.
    pub(super) fn own<T>(&self, slice: CudaSlice<T>) -> Owned<T> {
        Owned {
            slice: ManuallyDrop::new(slice),
            thread: self.thread,
        }
    }

    /// Fails if the stream is another one in this thread.
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

/// Whether the stream is the handle that stands for each thread's own default stream.
fn is_per_thread(stream: &CudaStream) -> bool {
    /// `CU_STREAM_PER_THREAD` of cuda.h.
    const CU_STREAM_PER_THREAD: usize = 2;
    stream.cu_stream() as usize == CU_STREAM_PER_THREAD
}
