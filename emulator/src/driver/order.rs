//! The order of the work of streams.
//!
//! Here work is done when it is asked for. On a device only the order within a stream, events, a host that waits and
//! the legacy stream keep one piece of work after another, so every buffer remembers which bytes the latest pieces
//! read and wrote: two that touch the same ones, one of them writing, must be ordered by those.
//!
//! There is one host: what one of its threads has waited for, the others are taken to know.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{LazyLock, Mutex};

use super::lock;
use crate::memory::Buffer;

/// A stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Line {
    /// The legacy stream of a device.
    Legacy(usize),
    /// One that the legacy stream of its device waits for, and that waits for it.
    Blocking(usize, u64),
    /// One that does neither.
    NonBlocking(usize, u64),
}

impl Line {
    fn device(self) -> usize {
        match self {
            Line::Legacy(device) | Line::Blocking(device, _) | Line::NonBlocking(device, _) => {
                device
            }
        }
    }
}

/// How many pieces of work of each stream are over.
pub(crate) type Past = HashMap<Line, u64>;

fn join(past: &mut Past, other: &Past) {
    for (&line, &count) in other {
        let known = past.entry(line).or_default();
        *known = count.max(*known);
    }
}

/// A stream's pieces of work so far, and what was over before the latest.
#[derive(Default)]
struct Timeline {
    count: u64,
    past: Past,
}

#[derive(Default)]
struct Timelines {
    of: HashMap<Line, Timeline>,
    /// What the host has waited for.
    host: Past,
}

static TIMELINES: LazyLock<Mutex<Timelines>> = LazyLock::new(Mutex::default);

/// A piece of work: a launch, a copy, a fill, or a graph.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub line: Line,
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
    fn next(&mut self, line: Line) -> &mut Timeline {
        let mut before = Past::new();
        match line {
            Line::Legacy(device) => {
                for (&other, timeline) in &self.of {
                    if matches!(other, Line::Blocking(d, _) if d == device) {
                        join(&mut before, &timeline.past);
                        before.insert(other, timeline.count);
                    }
                }
            }
            Line::Blocking(device, _) => {
                let legacy = Line::Legacy(device);
                if let Some(timeline) = self.of.get(&legacy) {
                    before.clone_from(&timeline.past);
                    before.insert(legacy, timeline.count);
                }
            }
            Line::NonBlocking(..) => {}
        }
        let timeline = self.of.entry(line).or_default();
        join(&mut timeline.past, &before);
        timeline
    }

    /// Whether one piece of work is over before another begins.
    fn ordered(&self, first: Work, second: Work) -> bool {
        let over = |past: &Past| past.get(&first.line).is_some_and(|&n| n >= first.number);
        let timeline = self.of.get(&second.line);
        first.line == second.line || over(&self.host) || timeline.is_some_and(|t| over(&t.past))
    }
}

/// The next piece of work of a stream.
pub(crate) fn begin(line: Line) -> Work {
    let mut timelines = lock(&TIMELINES);
    let timeline = timelines.next(line);
    timeline.count += 1;
    Work {
        line,
        number: timeline.count,
    }
}

/// What is over once the work of a stream so far is: what an event records.
pub(crate) fn so_far(line: Line) -> Past {
    let mut timelines = lock(&TIMELINES);
    let timeline = timelines.next(line);
    let mut past = timeline.past.clone();
    past.insert(line, timeline.count);
    past
}

/// The work of a stream from now on comes after something.
pub(crate) fn wait(line: Line, past: &Past) {
    join(&mut lock(&TIMELINES).next(line).past, past);
}

/// The host has waited for something.
pub(crate) fn host_waited(past: &Past) {
    join(&mut lock(&TIMELINES).host, past);
}

/// The host has waited for all streams of a device.
pub(crate) fn host_waited_for_device(device: usize) {
    let timelines = &mut *lock(&TIMELINES);
    let of_device = timelines.of.iter().filter(|(l, _)| l.device() == device);
    let past = of_device.map(|(&line, t)| (line, t.count)).collect();
    join(&mut timelines.host, &past);
}

/// A stream is no more.
pub(crate) fn forget(line: Line) {
    if let Line::Blocking(device, _) = line {
        wait(Line::Legacy(device), &so_far(line));
    }
    lock(&TIMELINES).of.remove(&line);
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
