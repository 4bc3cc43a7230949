//! The messages of findings about memory and registers.

use super::address::{Kind, Target};
use super::block::Block;
use super::{Launch, Trap};
use crate::memory::SHARED_BASE;
use crate::memory::{Buffer, FORBIDDEN};
use crate::race;
use crate::report::Check;
use crate::shadow::Conflict;

impl Launch<'_> {
    /// The message of an access outside of its buffer.
    pub(super) fn outside(
        &self,
        block: &Block,
        w: usize,
        target: Target,
        offset: u64,
        size: u64,
        kind: Kind,
    ) -> String {
        let buffer = self.buffer(block, w, target);
        let verb = kind.verb();
        if target == Target::Shared {
            // Name the variable that lies before it.
            let code = self.code;
            let dynamic = (code.dynamic_start, u64::from(self.request.dynamic_shared));
            let near = code.shared.iter().map(|(n, o, s)| (n.as_str(), *o, *s));
            let near = near.chain([("dynamic shared memory", dynamic.0, dynamic.1)]);
            if let Some((name, start, len)) = near.filter(|v| v.1 <= offset).max_by_key(|v| v.1) {
                return format!(
                    "{size}-byte {verb} at offset {} of `{name}`, which has {len} bytes",
                    offset - start
                );
            }
        }
        let len = if target == Target::Local {
            self.code.local_bytes
        } else {
            buffer.len
        };
        format!(
            "{size}-byte {verb} at offset {} of {}, which has {len} bytes",
            offset as i64, buffer.name
        )
    }

    #[cold]
    pub(super) fn race(
        &self,
        block: u64,
        lane: usize,
        buffer: &Buffer,
        offset: u64,
        c: &Conflict,
        what: &str,
    ) -> Box<Trap> {
        let shared = buffer.base == SHARED_BASE;
        let (other, thread) = race::who(c.previous);
        let did = match (c.wrote, race::is_atomic(c.previous)) {
            (true, true) => "changed by an atomic of",
            (true, false) => "written by",
            (false, _) => "read by",
        };
        let who = match thread {
            None if race::is_asynchronous(c.previous) => {
                "an asynchronous store of a block of the cluster".to_string()
            }
            None => "several threads".to_string(),
            Some(t) if race::who(race::stamp(0, block, 0, false)).0 == other => {
                format!("thread {:?} of the same block", self.thread_id(t))
            }
            Some(t) => format!(
                "thread {:?} of block {:?}",
                self.thread_id(t),
                self.block_id(other)
            ),
        };
        let place = match self
            .code
            .shared
            .iter()
            .find(|(_, o, s)| shared && (*o..o + s).contains(&offset))
        {
            Some((name, start, _)) => format!("offset {} of `{name}`", offset - start),
            None if shared => format!(
                "offset {} of dynamic shared memory",
                offset.wrapping_sub(self.code.dynamic_start) as i64
            ),
            None => format!("offset {offset} of {}", buffer.name),
        };
        if c.non_coherent {
            let path = "through the non-coherent path (`.nc`)";
            let message = if c.wrote {
                format!("{what} {path} of {place}, {did} {who}")
            } else {
                format!("{what} of {place}, {did} {who} {path}")
            };
            let rule = "memory read that way must not be written in the same launch";
            return Trap::new(Check::NonCoherent, lane, format!("{message}; {rule}"));
        }
        let check = if shared {
            Check::SharedRace
        } else {
            Check::GlobalRace
        };
        Trap::new(
            check,
            lane,
            format!("{what} of {place}, {did} {who} with nothing between them that orders the two"),
        )
    }
}

#[cold]
pub(super) fn unwritten(buffer: &Buffer, offset: u64, width: u8, lane: usize) -> Box<Trap> {
    let forbidden = (0..u64::from(width)).any(|i| buffer.state(offset + i) == FORBIDDEN);
    let (check, message) = if forbidden {
        (
            Check::OutOfBounds,
            format!(
                "{width}-byte access at offset {offset} of {}, outside of every variable",
                buffer.name
            ),
        )
    } else {
        (
            Check::Uninitialised,
            format!(
                "{width} bytes at offset {offset} of {} were never written",
                buffer.name
            ),
        )
    };
    Trap::new(check, lane, message)
}

/// The error of lanes that use a register which they never wrote.
pub(super) fn uninitialised_register(lanes: u32, what: &str) -> Box<Trap> {
    Trap::new(
        Check::Uninitialised,
        lanes.trailing_zeros() as usize,
        format!("{what} is a register never written"),
    )
}
