//! From addresses to buffers and offsets, with the checks of bounds, alignment and permission.

use super::block::Block;
use super::messages::uninitialised_register;
use super::warp::lanes_of;
use super::{Launch, Step, Trap};
use crate::lower::Access;
use crate::memory::{self, Buffer, FORBIDDEN, Found, LOCAL_BASE, SHARED_BASE, WINDOW};
use crate::ptx::ast::Space;
use crate::report::Check;

/// The buffer that an address points into.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Params,
    Local,
    Shared,
    /// Index into `Totals::touched`.
    Global(usize),
}

/// The kind of an access, for messages and counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Load,
    Store,
    Atomic,
}

impl Kind {
    pub fn verb(self) -> &'static str {
        match self {
            Kind::Load => "load",
            Kind::Store => "store",
            Kind::Atomic => "atomic",
        }
    }
}

/// The lanes of a request that go to one target.
pub(super) struct Group {
    pub target: Target,
    pub mask: u32,
    /// Offsets into the target's buffer.
    pub offsets: [u64; 32],
}

impl Launch<'_> {
    /// The leading lanes of a request that share a target, checked for bounds and alignment.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn group(
        &mut self,
        block: &Block,
        w: usize,
        a: &Access,
        addresses: &[u64; 32],
        mask: u32,
        size: u64,
        kind: Kind,
    ) -> Step<Group> {
        let lead = mask.trailing_zeros() as usize;
        let (target, base) = self.target(a, addresses[lead], lead, size, kind)?;
        let warp = &block.warps[w];
        // Local memory is one buffer for all lanes; each sees its own part.
        let local = warp.local.len / 32;
        let (buffer_base, len) = match target {
            Target::Params => (base, self.params.len),
            Target::Local => (base, self.code.local_bytes),
            Target::Shared => (base, block.shared.len),
            Target::Global(i) => (base, self.totals.touched[i].extent.buffer.len),
        };
        let limit = len.checked_sub(size);
        let mut offsets = [0; 32];
        let (mut inside, mut misaligned) = (0, 0);
        for lane in 0..32 {
            let offset = addresses[lane].wrapping_sub(buffer_base);
            offsets[lane] = offset;
            inside |= u32::from(limit.is_some_and(|l| offset <= l)) << lane;
            misaligned |= u32::from(addresses[lane] & (size - 1) != 0) << lane;
        }
        let group = mask & inside;
        if group & (1 << lead) == 0 {
            let message = self.outside(block, w, target, offsets[lead], size, kind);
            return Err(Trap::new(Check::OutOfBounds, lead, message));
        }
        if misaligned & group != 0 {
            let lane = (misaligned & group).trailing_zeros() as usize;
            let buffer = self.buffer(block, w, target);
            return Err(Trap::new(
                Check::Misaligned,
                lane,
                format!(
                    "{}-byte {} at address {:#x}, offset {} of {}",
                    size,
                    kind.verb(),
                    addresses[lane],
                    offsets[lane],
                    buffer.name
                ),
            ));
        }
        if kind != Kind::Load && self.buffer(block, w, target).read_only {
            let buffer = self.buffer(block, w, target);
            return Err(Trap::new(
                Check::ReadOnly,
                lead,
                format!(
                    "{} to offset {} of {}, which is constant",
                    kind.verb(),
                    offsets[lead],
                    buffer.name
                ),
            ));
        }
        if target == Target::Shared && kind == Kind::Store {
            for lane in lanes_of(group) {
                for i in 0..size {
                    if block.shared.state(offsets[lane] + i) == FORBIDDEN {
                        let message = self.outside(block, w, target, offsets[lane], size, kind);
                        return Err(Trap::new(Check::OutOfBounds, lane, message));
                    }
                }
            }
        }
        if target == Target::Local {
            for (lane, o) in offsets.iter_mut().enumerate() {
                *o = o.wrapping_add(lane as u64 * local);
            }
        }
        Ok(Group {
            target,
            mask: group,
            offsets,
        })
    }

    pub(super) fn buffer<'b>(&'b self, block: &'b Block, w: usize, target: Target) -> &'b Buffer {
        match target {
            Target::Params => &self.params,
            Target::Local => &block.warps[w].local,
            Target::Shared => &block.shared,
            Target::Global(i) => &self.totals.touched[i].extent.buffer,
        }
    }

    /// The buffer that an address points into, and the address of its first byte.
    #[inline]
    fn target(
        &mut self,
        a: &Access,
        address: u64,
        lane: usize,
        size: u64,
        kind: Kind,
    ) -> Step<(Target, u64)> {
        match a.space {
            Space::Param => Ok((Target::Params, memory::PARAM_BASE)),
            Space::Shared => Ok((Target::Shared, 0)),
            Space::Local => Ok((Target::Local, 0)),
            Space::Global | Space::Const | Space::Generic => {
                let recent = self.totals.touched.get(self.recent);
                if let Some(t) = recent
                    && address.wrapping_sub(t.extent.buffer.base) < t.extent.buffer.len
                {
                    return Ok((Target::Global(self.recent), t.extent.buffer.base));
                }
                self.target_slowly(a, address, lane, size, kind)
            }
        }
    }

    fn target_slowly(
        &mut self,
        a: &Access,
        address: u64,
        lane: usize,
        size: u64,
        kind: Kind,
    ) -> Step<(Target, u64)> {
        if let Some(i) = self
            .totals
            .touched
            .iter()
            .position(|t| address.wrapping_sub(t.extent.buffer.base) < t.extent.buffer.len)
        {
            self.recent = i;
            return Ok((Target::Global(i), self.totals.touched[i].extent.buffer.base));
        }
        if a.space == Space::Generic {
            for (base, target) in [
                (SHARED_BASE, Target::Shared),
                (LOCAL_BASE, Target::Local),
                (memory::PARAM_BASE, Target::Params),
            ] {
                if address.wrapping_sub(base) < WINDOW {
                    return Ok((target, base));
                }
            }
        }
        let access = format!("{size}-byte {} at address {address:#x}", kind.verb());
        match memory::find(address) {
            // Peer access would allow this, but xact does not use it.
            Found::Live { buffer, device } if device != self.request.device => Err(Trap::new(
                Check::OutOfBounds,
                lane,
                format!(
                    "{access}, offset {} of {}, which is on device {device}",
                    address.wrapping_sub(buffer.base) as i64,
                    buffer.name
                ),
            )),
            Found::Live { buffer, .. } => {
                let base = buffer.base;
                self.recent = self.totals.touch(buffer);
                Ok((Target::Global(self.recent), base))
            }
            Found::Freed { base, len } => Err(Trap::new(
                Check::UseAfterFree,
                lane,
                format!(
                    "{access}, offset {} of an allocation of {len} bytes that was freed",
                    address.wrapping_sub(base) as i64
                ),
            )),
            Found::Nothing if !(1 << 20..=u64::MAX - (1 << 20)).contains(&address) => Err(
                Trap::new(Check::Null, lane, format!("{access}: a null pointer")),
            ),
            Found::Nothing if (memory::PARAM_BASE..4 << 40).contains(&address) => Err(Trap::new(
                Check::OutOfBounds,
                lane,
                format!("{access}, which is not global memory: shared, local or parameters"),
            )),
            Found::Nothing => Err(Trap::new(
                Check::OutOfBounds,
                lane,
                format!("{access}, which belongs to nothing"),
            )),
        }
    }
}

/// The addresses of all lanes.
#[inline]
pub(super) fn addresses(block: &Block, w: usize, a: &Access, mask: u32) -> Step<[u64; 32]> {
    let lanes = &block.warps[w].lanes;
    let slot = a.base.slot;
    let unwritten = mask & !lanes.written[slot.row as usize];
    if unwritten != 0 {
        return Err(uninitialised_register(unwritten, "its address"));
    }
    let mut out = lanes.load_raw(slot.row, slot.wide);
    for o in &mut out {
        *o = o.wrapping_add_signed(a.base.offset);
    }
    Ok(out)
}
