//! Streams and their capture.
//!
//! Work is complete when the call that asks for it returns. A stream is therefore only a handle, its state of capture, and
//! its [`order`], which is checked.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;

use super::error::Error;
use super::event;
use super::graph::{self, Node};
use super::order::{self, StreamId, Work};
use super::{Handle, Registry, Status, call, context, lock, put};

/// The streams that exist without being made: null, legacy and per-thread.
const PER_THREAD: usize = 2;

const NON_BLOCKING: c_uint = 1;

/// How a capture treats unsafe calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

/// A capture in progress.
struct Capture {
    id: u64,
    mode: Mode,
    thread: ThreadId,
    nodes: Vec<Node>,
    invalidated: bool,
}

/// A stream.
pub(crate) struct Stream {
    device: usize,
    id: u64,
    flags: c_uint,
    priority: c_int,
    capture: Mutex<Option<Capture>>,
}

static STREAMS: Registry<Stream> = Registry::new();
/// Streams under capture. Short, and usually empty.
static CAPTURING: Mutex<Vec<Arc<Stream>>> = Mutex::new(Vec::new());
static NEXT_ID: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

thread_local! {
    /// This thread's `CU_STREAM_PER_THREAD`, per device.
    static OWN: [Arc<Stream>; crate::device::DEVICES.len()] = std::array::from_fn(|d| Arc::new(Stream::new(d, 0, 0)));
}

impl Stream {
    fn new(device: usize, flags: c_uint, priority: c_int) -> Self {
        let id = NEXT_ID.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Stream {
            device,
            id,
            flags,
            priority,
            capture: Mutex::new(None),
        }
    }

    fn stream_id(&self) -> StreamId {
        if self.flags & NON_BLOCKING == 0 {
            StreamId::Blocking(self.device, self.id)
        } else {
            StreamId::NonBlocking(self.device, self.id)
        }
    }
}

/// The stream of a handle; nothing for the legacy stream.
fn get(handle: Handle) -> Result<Option<Arc<Stream>>, Error> {
    let device = context::current()?;
    match handle as usize {
        0 | 1 => Ok(None),
        PER_THREAD => Ok(Some(OWN.with(|s| s[device].clone()))),
        _ => STREAMS.get(handle).map(Some),
    }
}

/// The stream of a handle, where order is concerned.
pub(crate) fn stream_id(handle: Handle) -> Result<StreamId, Error> {
    let legacy = StreamId::Legacy(context::current()?);
    Ok(get(handle)?.map_or(legacy, |s| s.stream_id()))
}

/// Adds a node to the graph that is being captured, or returns the piece of work if the stream is not being captured.
pub(crate) fn enqueue(handle: Handle, node: impl FnOnce() -> Node) -> Result<Option<Work>, Error> {
    let Some(stream) = get(handle)? else {
        // The legacy stream waits for all blocking streams.
        let blocking = |s: &Arc<Stream>| s.flags & NON_BLOCKING == 0;
        return match lock(&CAPTURING).iter().find(|s| blocking(s)) {
            None => Ok(Some(order::begin(stream_id(handle)?))),
            Some(s) => {
                invalidate(s);
                Err(Error::STREAM_CAPTURE_IMPLICIT)
            }
        };
    };
    if stream.device != context::current()? {
        return Err(Error::INVALID_HANDLE);
    }
    let mut capture = lock(&stream.capture);
    match &mut *capture {
        None => Ok(Some(order::begin(stream.stream_id()))),
        Some(c) if c.invalidated => Err(Error::STREAM_CAPTURE_INVALIDATED),
        Some(c) => {
            c.nodes.push(node());
            Ok(None)
        }
    }
}

/// The capture of a stream, if there is one.
pub(crate) fn capture_id(handle: Handle) -> Result<Option<u64>, Error> {
    Ok(get(handle)?.and_then(|s| lock(&s.capture).as_ref().map(|c| c.id)))
}

fn invalidate(s: &Stream) {
    if let Some(c) = &mut *lock(&s.capture) {
        c.invalidated = true;
    }
}

/// Allocating, freeing, synchronous copies and loading modules: unsafe during a capture, if its mode
/// says so.
pub(crate) fn forbid_unsafe_call() -> Result<(), Error> {
    let here = std::thread::current().id();
    for s in lock(&CAPTURING).iter() {
        let mut capture = lock(&s.capture);
        if let Some(c) = &mut *capture
            && (c.mode == Mode::Global || (c.mode == Mode::ThreadLocal && c.thread == here))
        {
            c.invalidated = true;
            return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
        }
    }
    Ok(())
}

/// Waiting for a whole device cannot be captured, and work that is being captured does not run.
pub(crate) fn forbid_all(device: usize) -> Result<(), Error> {
    let found = lock(&CAPTURING)
        .iter()
        .find(|s| s.device == device)
        .cloned();
    match found {
        None => Ok(()),
        Some(s) => {
            invalidate(&s);
            Err(Error::STREAM_CAPTURE_UNSUPPORTED)
        }
    }
}

/// The host waits for a stream: an error if it is under capture.
pub(crate) fn host_waits(handle: Handle) -> Result<(), Error> {
    match get(handle)? {
        Some(s) if lock(&s.capture).is_some() => {
            invalidate(&s);
            return Err(Error::STREAM_CAPTURE_UNSUPPORTED);
        }
        Some(_) => {}
        None => {
            enqueue(handle, || Node::Nothing)?;
        }
    }
    order::host_waited(&order::so_far(stream_id(handle)?));
    Ok(())
}

/// Makes a stream.
pub unsafe extern "C" fn cuStreamCreate(to: *mut Handle, flags: c_uint) -> Status {
    // SAFETY: the same contract.
    unsafe { cuStreamCreateWithPriority(to, flags, 0) }
}

/// Makes a stream.
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    to: *mut Handle,
    flags: c_uint,
    priority: c_int,
) -> Status {
    call(|| {
        let device = context::current()?;
        if flags > 1 {
            return Err(Error::INVALID_VALUE);
        }
        let stream = STREAMS.insert(Stream::new(device, flags, priority.clamp(-5, 0)));
        // SAFETY: the caller gives a valid place.
        unsafe { put(to, stream) }
    })
}

/// Destroys a stream.
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Status {
    call(|| {
        let s = STREAMS.remove(stream)?;
        lock(&CAPTURING).retain(|c| !Arc::ptr_eq(c, &s));
        order::forget(s.stream_id());
        Ok(())
    })
}

/// Waits for a stream.
pub unsafe extern "C" fn cuStreamSynchronize(stream: Handle) -> Status {
    call(|| host_waits(stream))
}

/// Whether a stream has finished: always.
pub unsafe extern "C" fn cuStreamQuery(stream: Handle) -> Status {
    call(|| host_waits(stream))
}

/// Makes a stream wait for an event.
pub unsafe extern "C" fn cuStreamWaitEvent(
    stream: Handle,
    event: Handle,
    _flags: c_uint,
) -> Status {
    call(|| {
        let event = event::get(event)?;
        let (here, there) = (capture_id(stream)?, event.capture());
        match (here, there) {
            (None, None) => {
                if let Some((_, past)) = event.happened()? {
                    order::wait(stream_id(stream)?, &past);
                }
                Ok(())
            }
            (Some(a), Some(b)) if a == b => Ok(()),
            // An event from outside: the graph could not depend on it.
            (Some(_), None) => {
                if let Some(s) = get(stream)? {
                    invalidate(&s);
                }
                Err(Error::STREAM_CAPTURE_ISOLATION)
            }
            _ => {
                eprintln!(
                    "cuda-emulator: cuStreamWaitEvent: a capture of several streams is not supported"
                );
                Err(Error::NOT_SUPPORTED)
            }
        }
    })
}

/// The context of a stream.
pub unsafe extern "C" fn cuStreamGetCtx(stream: Handle, to: *mut Handle) -> Status {
    call(|| {
        let device = match get(stream)? {
            Some(s) => s.device,
            None => context::current()?,
        };
        // SAFETY: the caller gives a valid place.
        unsafe { put(to, context::handle(device)) }
    })
}

/// The flags of a stream.
pub unsafe extern "C" fn cuStreamGetFlags(stream: Handle, to: *mut c_uint) -> Status {
    // SAFETY: the caller gives a valid place.
    call(|| unsafe { put(to, get(stream)?.map_or(0, |s| s.flags)) })
}

/// The priority of a stream.
pub unsafe extern "C" fn cuStreamGetPriority(stream: Handle, to: *mut c_int) -> Status {
    // SAFETY: the caller gives a valid place.
    call(|| unsafe { put(to, get(stream)?.map_or(0, |s| s.priority)) })
}

/// A number that no other stream has.
pub unsafe extern "C" fn cuStreamGetId(stream: Handle, to: *mut u64) -> Status {
    // SAFETY: the caller gives a valid place.
    call(|| unsafe { put(to, get(stream)?.map_or(0, |s| s.id)) })
}

/// Calls a host function in the order of a stream.
pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: Handle,
    f: Option<unsafe extern "C" fn(*mut c_void)>,
    data: *mut c_void,
) -> Status {
    call(|| {
        let f = f.ok_or(Error::INVALID_VALUE)?;
        if enqueue(stream, || Node::Host(f, data as usize))?.is_some() {
            // SAFETY: the caller gave a function for exactly this.
            unsafe { f(data) };
        }
        Ok(())
    })
}

/// Begins a capture: later work on the stream is recorded and not run.
pub unsafe extern "C" fn cuStreamBeginCapture_v2(stream: Handle, mode: c_uint) -> Status {
    call(|| {
        let mode = match mode {
            0 => Mode::Global,
            1 => Mode::ThreadLocal,
            2 => Mode::Relaxed,
            _ => return Err(Error::INVALID_VALUE),
        };
        // The legacy stream cannot be captured.
        let s = get(stream)?.ok_or(Error::STREAM_CAPTURE_UNSUPPORTED)?;
        let mut list = lock(&CAPTURING);
        let mut capture = lock(&s.capture);
        if capture.is_some() {
            return Err(Error::ILLEGAL_STATE);
        }
        let id = NEXT_ID.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let thread = std::thread::current().id();
        *capture = Some(Capture {
            id,
            mode,
            thread,
            nodes: Vec::new(),
            invalidated: false,
        });
        drop(capture);
        list.push(s);
        Ok(())
    })
}

/// Ends a capture and gives the graph.
pub unsafe extern "C" fn cuStreamEndCapture(stream: Handle, to: *mut Handle) -> Status {
    call(|| {
        let s = get(stream)?.ok_or(Error::ILLEGAL_STATE)?;
        let mut list = lock(&CAPTURING);
        let mut capture = lock(&s.capture);
        match &*capture {
            None => return Err(Error::ILLEGAL_STATE),
            Some(c) if c.mode != Mode::Relaxed && c.thread != std::thread::current().id() => {
                return Err(Error::STREAM_CAPTURE_WRONG_THREAD);
            }
            Some(_) => {}
        }
        let ended = capture.take();
        drop(capture);
        list.retain(|c| !Arc::ptr_eq(c, &s));
        drop(list);
        match ended {
            Some(c) if !c.invalidated => {
                // SAFETY: the caller gives a valid place.
                unsafe { put(to, graph::insert(s.device, c.nodes)) }
            }
            _ => {
                // SAFETY: the caller gives a valid place.
                unsafe { put(to, std::ptr::null_mut()) }?;
                Err(Error::STREAM_CAPTURE_INVALIDATED)
            }
        }
    })
}

/// 0: not captured; 1: captured; 2: the capture is invalid.
fn status(s: Option<&Stream>) -> (c_uint, u64) {
    match s.map(|s| lock(&s.capture)).as_deref() {
        Some(Some(c)) => (if c.invalidated { 2 } else { 1 }, c.id),
        _ => (0, 0),
    }
}

/// Whether a stream is being captured.
pub unsafe extern "C" fn cuStreamIsCapturing(stream: Handle, to: *mut c_uint) -> Status {
    call(|| {
        let (status, _) = status(get(stream)?.as_deref());
        // SAFETY: the caller gives a valid place.
        unsafe { put(to, status) }
    })
}

/// Whether a stream is being captured, and the number of the capture. The graph under construction
/// is not shown.
pub unsafe extern "C" fn cuStreamGetCaptureInfo_v2(
    stream: Handle,
    to: *mut c_uint,
    id: *mut u64,
    graph: *mut Handle,
    dependencies: *mut *const Handle,
    count: *mut usize,
) -> Status {
    call(|| {
        let (status, number) = status(get(stream)?.as_deref());
        if !graph.is_null() || !dependencies.is_null() || !count.is_null() {
            return Err(Error::NOT_SUPPORTED);
        }
        if !id.is_null() {
            // SAFETY: not null, so the caller gives a valid place.
            unsafe { id.write(number) };
        }
        // SAFETY: the caller gives a valid place.
        unsafe { put(to, status) }
    })
}
