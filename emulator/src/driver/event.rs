//! Events: the time of their record, and the work that was complete then.

use std::ffi::{c_float, c_uint};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::error::Error;
use super::graph::Node;
use super::order::{self, Past, StreamId};
use super::{Handle, Registry, Status, call, context, lock, put, stream};

const DISABLE_TIMING: c_uint = 2;

/// An event.
pub(crate) struct Event {
    flags: c_uint,
    recorded: Mutex<Recorded>,
}

/// The latest record of an event.
#[derive(Clone)]
enum Recorded {
    Never,
    /// The time of the record, and the work that was complete then.
    At(Instant, Past),
    /// The event was recorded in a capture.
    Captured(u64),
}

static EVENTS: Registry<Event> = Registry::new();

impl Event {
    /// The capture in which the event was recorded last.
    pub fn capture(&self) -> Option<u64> {
        match *lock(&self.recorded) {
            Recorded::Captured(id) => Some(id),
            _ => None,
        }
    }

    /// Records the event now.
    pub fn record(&self, on: StreamId) {
        *lock(&self.recorded) = Recorded::At(Instant::now(), order::so_far(on));
    }

    /// The time of the record and the work that was complete then; an error if the event was not really recorded.
    pub fn happened(&self) -> Result<Option<(Instant, Past)>, Error> {
        match lock(&self.recorded).clone() {
            Recorded::Never => Ok(None),
            Recorded::At(time, past) => Ok(Some((time, past))),
            Recorded::Captured(_) => Err(Error::CAPTURED_EVENT),
        }
    }

    /// Called when the host has waited for the event.
    fn host_waited(&self) -> Result<(), Error> {
        if let Some((_, past)) = self.happened()? {
            order::host_waited(&past);
        }
        Ok(())
    }
}

/// The event of a handle.
pub(crate) fn get(event: Handle) -> Result<Arc<Event>, Error> {
    EVENTS.get(event)
}

/// Makes an event.
pub unsafe extern "C" fn cuEventCreate(to: *mut Handle, flags: c_uint) -> Status {
    call(|| {
        context::current()?;
        if flags > 7 {
            return Err(Error::INVALID_VALUE);
        }
        let event = Event {
            flags,
            recorded: Mutex::new(Recorded::Never),
        };
        // SAFETY: the caller gives a valid place.
        unsafe { put(to, EVENTS.insert(event)) }
    })
}

/// Destroys an event.
pub unsafe extern "C" fn cuEventDestroy_v2(event: Handle) -> Status {
    call(|| EVENTS.remove(event).map(|_| ()))
}

/// Records an event on a stream.
pub unsafe extern "C" fn cuEventRecord(event: Handle, on: Handle) -> Status {
    call(|| {
        let e = get(event)?;
        let capture = stream::capture_id(on)?;
        match (stream::enqueue(on, || Node::Nothing)?, capture) {
            (Some(work), _) => e.record(work.stream_id),
            (None, Some(id)) => *lock(&e.recorded) = Recorded::Captured(id),
            (None, None) => {}
        }
        Ok(())
    })
}

/// Records an event on a stream; with flag 1 as a node of the graph that is being captured.
pub unsafe extern "C" fn cuEventRecordWithFlags(
    event: Handle,
    on: Handle,
    flags: c_uint,
) -> Status {
    if flags == 0 {
        // SAFETY: the same contract.
        return unsafe { cuEventRecord(event, on) };
    }
    call(|| {
        let e = get(event)?;
        if let Some(work) = stream::enqueue(on, || Node::Record(e.clone()))? {
            e.record(work.stream_id);
        }
        Ok(())
    })
}

/// Whether an event has happened: always.
pub unsafe extern "C" fn cuEventQuery(event: Handle) -> Status {
    call(|| get(event)?.host_waited())
}

/// Waits for an event.
pub unsafe extern "C" fn cuEventSynchronize(event: Handle) -> Status {
    call(|| get(event)?.host_waited())
}

/// Milliseconds between two events.
pub unsafe extern "C" fn cuEventElapsedTime_v2(
    to: *mut c_float,
    start: Handle,
    end: Handle,
) -> Status {
    call(|| {
        let (a, b) = (get(start)?, get(end)?);
        if (a.flags | b.flags) & DISABLE_TIMING != 0 {
            return Err(Error::INVALID_HANDLE);
        }
        let (a, _) = a.happened()?.ok_or(Error::INVALID_HANDLE)?;
        let (b, _) = b.happened()?.ok_or(Error::INVALID_HANDLE)?;
        let ms = match b.checked_duration_since(a) {
            Some(d) => d.as_secs_f64() * 1e3,
            None => -(a - b).as_secs_f64() * 1e3,
        };
        // SAFETY: the caller gives a valid place.
        unsafe { put(to, ms as c_float) }
    })
}

/// Milliseconds between two events, under the name of older bindings.
pub unsafe extern "C" fn cuEventElapsedTime(
    to: *mut c_float,
    start: Handle,
    end: Handle,
) -> Status {
    // SAFETY: the same contract.
    unsafe { cuEventElapsedTime_v2(to, start, end) }
}
