//! The order of the work of streams.
//!
//! The emulator executes work immediately. On a device, only the order within a stream, events, waits of the host and the
//! legacy stream order two pieces of work. So every buffer remembers which bytes the latest pieces of work read and wrote. If
//! two pieces touch the same bytes and one of them writes, one of these mechanisms must order them.
//!
//! Host threads are not distinguished: if one thread has waited for work, it counts as complete for all threads.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{LazyLock, Mutex};

use super::lock;
use crate::memory::Buffer;

/// A stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StreamId {
    /// The legacy stream of a device.
    Legacy(usize),
    /// A stream that waits for the legacy stream of its device, which waits for it too.
    Blocking(usize, u64),
    /// A stream that is not ordered with the legacy stream.
    NonBlocking(usize, u64),
}

impl StreamId {
    fn device(self) -> usize {
        match self {
            StreamId::Legacy(device)
            | StreamId::Blocking(device, _)
            | StreamId::NonBlocking(device, _) => device,
        }
    }
}

/// The number of completed pieces of work of each stream.
pub(crate) type Past = HashMap<StreamId, u64>;

fn join(past: &mut Past, other: &Past) {
    for (&stream_id, &count) in other {
        let known = past.entry(stream_id).or_default();
        *known = count.max(*known);
    }
}

/// The number of pieces of work of a stream so far, and what was complete before the latest.
#[derive(Default)]
struct Timeline {
    count: u64,
    past: Past,
}

#[derive(Default)]
struct Timelines {
    of: HashMap<StreamId, Timeline>,
    /// What the host has waited for.
    host: Past,
}

static TIMELINES: LazyLock<Mutex<Timelines>> = LazyLock::new(Mutex::default);

/// A piece of work: a launch, a copy, a fill, or a graph.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub stream_id: StreamId,
    number: u64,
}

/// Bytes that a piece of work touched.
pub(crate) struct Use {
    work: Work,
    /// The kernel, or what the work was.
    by: String,
    bytes: Range<u64>,
    writes: bool,
}

impl Timelines {
    /// The past of what comes next in a stream.
    fn next(&mut self, stream_id: StreamId) -> &mut Timeline {
        let mut before = Past::new();
        match stream_id {
            StreamId::Legacy(device) => {
                for (&other, timeline) in &self.of {
                    if matches!(other, StreamId::Blocking(d, _) if d == device) {
                        join(&mut before, &timeline.past);
                        before.insert(other, timeline.count);
                    }
                }
            }
            StreamId::Blocking(device, _) => {
                let legacy = StreamId::Legacy(device);
                if let Some(timeline) = self.of.get(&legacy) {
                    before.clone_from(&timeline.past);
                    before.insert(legacy, timeline.count);
                }
            }
            StreamId::NonBlocking(..) => {}
        }
        let timeline = self.of.entry(stream_id).or_default();
        join(&mut timeline.past, &before);
        timeline
    }

    /// Whether one piece of work is over before another begins.
    fn ordered(&self, first: Work, second: Work) -> bool {
        let over = |past: &Past| {
            past.get(&first.stream_id)
                .is_some_and(|&n| n >= first.number)
        };
        let timeline = self.of.get(&second.stream_id);
        first.stream_id == second.stream_id
            || over(&self.host)
            || timeline.is_some_and(|t| over(&t.past))
    }
}

/// The next piece of work of a stream.
pub(crate) fn begin(stream_id: StreamId) -> Work {
    let mut timelines = lock(&TIMELINES);
    let timeline = timelines.next(stream_id);
    timeline.count += 1;
    Work {
        stream_id,
        number: timeline.count,
    }
}

/// What is over once the work of a stream so far is: what an event records.
pub(crate) fn so_far(stream_id: StreamId) -> Past {
    let mut timelines = lock(&TIMELINES);
    let timeline = timelines.next(stream_id);
    let mut past = timeline.past.clone();
    past.insert(stream_id, timeline.count);
    past
}

/// The work of a stream from now on comes after something.
pub(crate) fn wait(stream_id: StreamId, past: &Past) {
    join(&mut lock(&TIMELINES).next(stream_id).past, past);
}

/// The host has waited for something.
pub(crate) fn host_waited(past: &Past) {
    join(&mut lock(&TIMELINES).host, past);
}

/// The host has waited for all streams of a device.
pub(crate) fn host_waited_for_device(device: usize) {
    let timelines = &mut *lock(&TIMELINES);
    let of_device = timelines.of.iter().filter(|(l, _)| l.device() == device);
    let past = of_device
        .map(|(&stream_id, t)| (stream_id, t.count))
        .collect();
    join(&mut timelines.host, &past);
}

/// Called when a stream is destroyed.
pub(crate) fn forget(stream_id: StreamId) {
    if let StreamId::Blocking(device, _) = stream_id {
        wait(StreamId::Legacy(device), &so_far(stream_id));
    }
    lock(&TIMELINES).of.remove(&stream_id);
}

/// Uses that a buffer remembers.
const REMEMBERED: usize = 256;

/// Notes which bytes of a buffer a piece of work has touched. Says with whose use of them it is not ordered.
pub(crate) fn touch(
    work: Work,
    by: &str,
    buffer: &Buffer,
    bytes: Range<u64>,
    writes: bool,
) -> Result<(), String> {
    let timelines = lock(&TIMELINES);
    let mut uses = lock(&buffer.uses);
    let overlaps = |u: &Use| u.bytes.start < bytes.end && bytes.start < u.bytes.end;
    let conflict = uses
        .iter()
        .find(|u| (writes || u.writes) && overlaps(u) && !timelines.ordered(u.work, work));
    let result = conflict.map_or(Ok(()), |u| {
        Err(format!(
            "{} bytes {}..{} of {}, which `{}` on another stream {}, and no event, no waiting host and no legacy \
             stream orders the two",
            if writes { "writes" } else { "reads" },
            bytes.start.max(u.bytes.start),
            bytes.end.min(u.bytes.end),
            buffer.name,
            u.by,
            if u.writes { "writes" } else { "reads" },
        ))
    });
    // Whoever comes after this use comes after those that it replaces.
    uses.retain(|u| {
        let inside = bytes.start <= u.bytes.start && u.bytes.end <= bytes.end;
        !(inside && (writes || !u.writes) && timelines.ordered(u.work, work))
    });
    if uses.len() == REMEMBERED {
        uses.remove(0);
    }
    uses.push(Use {
        work,
        by: by.to_string(),
        bytes,
        writes,
    });
    result
}
