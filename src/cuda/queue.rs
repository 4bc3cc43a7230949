//! Where calls go.

#![allow(unsafe_code)]

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
    workspace: Option<CudaSlice<u8>>,
    /// The creating thread, if the stream is the per-thread default one: there the same handle means
    /// another stream in each thread.
    thread: Option<ThreadId>,
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
    /// [`Error::Driver`], for example when memory is short; the workspace is then as it was.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        if bytes <= self.workspace_bytes() {
            return Ok(());
        }
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        // SAFETY: the contents are undefined, and the kernels write every partial before they read it.
        let workspace = unsafe { self.stream.alloc::<u8>(bytes) }
            .map_err(|e| driver_error("allocating a workspace", e))?;
        self.workspace = Some(workspace);
        Ok(())
    }

    /// Loads every kernel now: see [`Device::preload`].
    ///
    /// # Errors
    /// As there.
    pub fn preload(&self) -> Result<()> {
        self.device.preload()
    }

    pub(super) fn parts(&mut self) -> Result<Parts<'_>> {
        let here = |thread| thread == std::thread::current().id();
        if !self.thread.is_none_or(here) {
            return Err(Error::WrongThread);
        }
        Ok(Parts {
            device: &self.device,
            stream: &self.stream,
            workspace: self.workspace.as_mut(),
        })
    }
}

/// Whether the stream is the handle that stands for each thread's own default stream.
fn is_per_thread(stream: &CudaStream) -> bool {
    /// `CU_STREAM_PER_THREAD` of cuda.h.
    const CU_STREAM_PER_THREAD: usize = 2;
    stream.cu_stream() as usize == CU_STREAM_PER_THREAD
}
