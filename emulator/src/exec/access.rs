//! Loads, stores and atomics, with all their checks.

use std::sync::Arc;

use super::block::Block;
use super::warp::{lanes_of, uninitialised_register};
use super::{Launch, Step, Touched, Trap};
use crate::arith::float::flush;
use crate::arith::half::{self, Format};
use crate::lower::{Access, AtomicKind, AtomicOp};
use crate::memory::{self, Buffer, FORBIDDEN, Found, LOCAL_BASE, SHARED_BASE, WINDOW};
use crate::ptx::ast::Space;
use crate::race::{self, Conflict, Order};
use crate::report::Check;
use crate::traffic::BufferTraffic;

/// Where an address leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Params,
    Local,
    Shared,
    /// Index into `Launch::touched`.
    Global(usize),
}

/// What is done to memory, for messages and counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Load,
    Store,
    Atomic,
}

impl Kind {
    fn verb(self) -> &'static str {
        match self {
            Kind::Load => "load",
            Kind::Store => "store",
            Kind::Atomic => "atomic",
        }
    }
}

/// The lanes of a request that go to one target.
struct Group {
    target: Target,
    mask: u32,
    /// Offsets into the target's buffer.
    offsets: [u64; 32],
}

impl Launch<'_> {
    pub(super) fn load(&mut self, block: &mut Block, w: usize, a: &Access, mask: u32) -> Step {
        let size = u64::from(a.width) * a.elements.len() as u64;
        let addresses = addresses(block, w, a, mask)?;
        let mut rest = mask;
        while rest != 0 {
            let group = self.group(block, w, a, &addresses, rest, size, Kind::Load)?;
            rest &= !group.mask;
            self.count(&group, size, Kind::Load);
            let clock = memory_clock();
            let warp = &mut block.warps[w];
            let (buffer, racy) = match group.target {
                Target::Params => (&self.params, false),
                Target::Local => (&warp.local, false),
                Target::Shared => (&block.shared, true),
                Target::Global(i) => (&*self.touched[i].buffer, true),
            };
            let order = Order {
                floor: if group.target == Target::Shared {
                    block.floor
                } else {
                    self.floor
                },
                barrier: block.barrier_clock,
                partial: &block.partial,
                warp_syncs: &warp.syncs,
                warp: warp.index,
                released: &self.released,
                acquired: block.acquired,
                lenient: self.code.swaps[usize::from(group.target == Target::Shared)],
            };
            let stamp = race::stamp(clock, block.linear, warp.index * 32, a.strong);
            for lane in lanes_of(group.mask) {
                let offset = group.offsets[lane];
                if racy {
                    let me = stamp + ((lane as u64) << 1);
                    let read = if a.non_coherent {
                        buffer
                            .shadow
                            .read_non_coherent(offset, size, me, order.floor)
                    } else {
                        buffer.shadow.read(offset, size, me, &order)
                    };
                    if let Err(c) = read {
                        return Err(self.race(block.linear, lane, buffer, offset, &c, "read"));
                    }
                }
                for (i, d) in a.elements.iter().enumerate() {
                    let at = offset + u64::from(a.width) * i as u64;
                    if !buffer.is_written(at, a.width) {
                        return Err(unwritten(buffer, at, a.width, lane));
                    }
                    let mut value = buffer.load(at, a.width);
                    if a.signed {
                        let s = 64 - 8 * u32::from(a.width);
                        value = ((value << s) as i64 >> s) as u64;
                        if !d.wide && a.width < 4 {
                            value &= if a.width == 1 { 0xffff_ffff } else { 0xffff };
                        }
                    }
                    warp.lanes.set(d.row, d.wide, lane, value);
                }
            }
            for d in &a.elements {
                warp.lanes.written[d.row as usize] |= group.mask;
            }
            if a.strong {
                block.acquired = race::tick();
            }
        }
        Ok(())
    }

    pub(super) fn store(&mut self, block: &mut Block, w: usize, a: &Access, mask: u32) -> Step {
        let size = u64::from(a.width) * a.elements.len() as u64;
        let addresses = addresses(block, w, a, mask)?;
        for s in &a.elements {
            let unwritten = mask & !block.warps[w].lanes.written[s.row as usize];
            if unwritten != 0 {
                return Err(uninitialised_register(unwritten, "the value to store"));
            }
        }
        if a.strong {
            self.publish(block, w, mask, a.releases);
        }
        let mut rest = mask;
        while rest != 0 {
            let group = self.group(block, w, a, &addresses, rest, size, Kind::Store)?;
            rest &= !group.mask;
            self.count(&group, size, Kind::Store);
            let clock = memory_clock();
            let warp = &block.warps[w];
            let (buffer, racy) = match group.target {
                Target::Params => (&self.params, false),
                Target::Local => (&warp.local, false),
                Target::Shared => (&block.shared, true),
                Target::Global(i) => (&*self.touched[i].buffer, true),
            };
            let order = Order {
                floor: if group.target == Target::Shared {
                    block.floor
                } else {
                    self.floor
                },
                barrier: block.barrier_clock,
                partial: &block.partial,
                warp_syncs: &warp.syncs,
                warp: warp.index,
                released: &self.released,
                acquired: block.acquired,
                lenient: self.code.swaps[usize::from(group.target == Target::Shared)],
            };
            let stamp = race::stamp(clock, block.linear, warp.index * 32, a.strong);
            for lane in lanes_of(group.mask) {
                let offset = group.offsets[lane];
                if racy {
                    let me = stamp + ((lane as u64) << 1);
                    if let Err(c) = buffer.shadow.write(offset, size, me, &order) {
                        return Err(self.race(block.linear, lane, buffer, offset, &c, "write"));
                    }
                }
                for (i, s) in a.elements.iter().enumerate() {
                    let at = offset + u64::from(a.width) * i as u64;
                    buffer.store(at, a.width, warp.lanes.get(s.row, s.wide, lane));
                    buffer.mark_written(at, a.width);
                }
            }
        }
        Ok(())
    }

    pub(super) fn atomic(
        &mut self,
        block: &mut Block,
        w: usize,
        a: &Access,
        op: &AtomicOp,
        mask: u32,
    ) -> Step {
        let size = u64::from(a.width);
        let addresses = addresses(block, w, a, mask)?;
        for s in [Some(op.b), op.c].into_iter().flatten() {
            let unwritten = mask & !block.warps[w].lanes.written[s.row as usize];
            if unwritten != 0 {
                return Err(uninitialised_register(unwritten, "its operand"));
            }
        }
        self.publish(block, w, mask, a.releases);
        let mut rest = mask;
        while rest != 0 {
            let group = self.group(block, w, a, &addresses, rest, size, Kind::Atomic)?;
            rest &= !group.mask;
            self.count(&group, size, Kind::Atomic);
            let clock = memory_clock();
            let warp = &mut block.warps[w];
            let buffer = match group.target {
                Target::Shared => &block.shared,
                Target::Global(i) => &*self.touched[i].buffer,
                _ => {
                    return Err(Trap::new(
                        Check::Unsupported,
                        0,
                        "atomic on local memory or parameters",
                    ));
                }
            };
            let shared = group.target == Target::Shared;
            let order = Order {
                floor: if shared { block.floor } else { self.floor },
                barrier: block.barrier_clock,
                partial: &block.partial,
                warp_syncs: &warp.syncs,
                warp: warp.index,
                released: &self.released,
                acquired: block.acquired,
                lenient: self.code.swaps[usize::from(shared)],
            };
            let stamp = race::stamp(clock, block.linear, warp.index * 32, true);
            for lane in lanes_of(group.mask) {
                let offset = group.offsets[lane];
                if !buffer.is_written(offset, a.width) {
                    return Err(unwritten(buffer, offset, a.width, lane));
                }
                if let Err(c) =
                    buffer
                        .shadow
                        .write(offset, size, stamp + ((lane as u64) << 1), &order)
                {
                    return Err(self.race(block.linear, lane, buffer, offset, &c, "atomic"));
                }
                let b = warp.lanes.get(op.b.row, op.b.wide, lane);
                let c = op.c.map_or(0, |c| warp.lanes.get(c.row, c.wide, lane));
                let old = buffer.update(offset, a.width, |old| {
                    combine(op.kind, a.width, shared, old, b, c)
                });
                if let Some(d) = op.d {
                    warp.lanes.set(d.row, d.wide, lane, old);
                }
            }
            if let Some(d) = op.d {
                warp.lanes.written[d.row as usize] |= group.mask;
            }
            block.acquired = race::tick();
        }
        Ok(())
    }

    /// An atomic or strong store after a fence publishes what the block did before.
    fn publish(&mut self, block: &Block, w: usize, mask: u32, releases: bool) {
        if releases || block.warps[w].fenced & mask != 0 {
            let block_bits = race::who(race::stamp(0, block.linear, 0, false)).0;
            self.released.insert(block_bits, race::tick());
        }
    }

    /// The leading lanes of a request that share a target, checked for bounds and alignment.
    #[allow(clippy::too_many_arguments)]
    fn group(
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
            Target::Global(i) => (base, self.touched[i].buffer.len),
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

    fn buffer<'b>(&'b self, block: &'b Block, w: usize, target: Target) -> &'b Buffer {
        match target {
            Target::Params => &self.params,
            Target::Local => &block.warps[w].local,
            Target::Shared => &block.shared,
            Target::Global(i) => &self.touched[i].buffer,
        }
    }

    /// Where an address leads, and the address of that buffer's first byte.
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
                let recent = self.touched.get(self.recent);
                if let Some(t) = recent
                    && address.wrapping_sub(t.buffer.base) < t.buffer.len
                {
                    return Ok((Target::Global(self.recent), t.buffer.base));
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
            .touched
            .iter()
            .position(|t| address.wrapping_sub(t.buffer.base) < t.buffer.len)
        {
            self.recent = i;
            return Ok((Target::Global(i), self.touched[i].buffer.base));
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
            Found::Live(buffer) => {
                let base = buffer.base;
                self.touch(buffer);
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

    fn touch(&mut self, buffer: Arc<Buffer>) {
        if let Some(i) = self
            .touched
            .iter()
            .position(|t| t.buffer.base == buffer.base)
        {
            self.recent = i;
            return;
        }
        let traffic = BufferTraffic {
            address: buffer.base,
            len: buffer.len,
            ..BufferTraffic::default()
        };
        self.recent = self.touched.len();
        self.touched.push(Touched { buffer, traffic });
    }

    /// The message of an access outside of its buffer.
    fn outside(
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

    /// Counts a request.
    #[inline]
    fn count(&mut self, group: &Group, size: u64, kind: Kind) {
        if !self.counting || matches!(group.target, Target::Params | Target::Local) {
            return;
        }
        let mut list = [0; 32];
        let mut n = 0;
        for lane in lanes_of(group.mask) {
            list[n] = group.offsets[lane];
            n += 1;
        }
        match group.target {
            Target::Global(i) => {
                let t = &mut self.touched[i].traffic;
                // Buffers start in the middle of nowhere, at a multiple of 32.
                if kind != Kind::Store {
                    t.bytes_read += n as u64 * size;
                    t.loads.add(&mut list[..n], size);
                }
                if kind != Kind::Load {
                    t.bytes_written += n as u64 * size;
                    t.stores.add(&mut list[..n], size);
                }
            }
            _ => self.shared.add(&list[..n], size),
        }
    }

    #[cold]
    fn race(
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

/// The time of an access.
fn memory_clock() -> u64 {
    race::now()
}

/// The addresses of all lanes.
#[inline]
fn addresses(block: &Block, w: usize, a: &Access, mask: u32) -> Step<[u64; 32]> {
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

#[cold]
fn unwritten(buffer: &Buffer, offset: u64, width: u8, lane: usize) -> Box<Trap> {
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

/// The new value of a memory cell.
fn combine(kind: AtomicKind, width: u8, shared: bool, old: u64, b: u64, c: u64) -> u64 {
    let signed = |v: u64| {
        let s = 64 - 8 * u32::from(width);
        (v << s) as i64 >> s
    };
    let pair = |f: fn(Format, u16, u16) -> u16, format| {
        u64::from(f(format, old as u16, b as u16))
            | u64::from(f(format, (old >> 16) as u16, (b >> 16) as u16)) << 16
    };
    match kind {
        AtomicKind::And => old & b,
        AtomicKind::Or => old | b,
        AtomicKind::Xor => old ^ b,
        AtomicKind::Exchange => b,
        AtomicKind::CompareAndSwap => {
            if old == b {
                c
            } else {
                old
            }
        }
        AtomicKind::Add => old.wrapping_add(b),
        AtomicKind::AddF32 => {
            let (x, y) = (f32::from_bits(old as u32), f32::from_bits(b as u32));
            let sum = if shared {
                x + y
            } else {
                flush(flush(x) + flush(y))
            };
            u64::from(crate::arith::float::canonical(sum).to_bits())
        }
        AtomicKind::AddF64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
        AtomicKind::AddF16 => u64::from(half::add(Format::F16, old as u16, b as u16)),
        AtomicKind::AddBf16 => u64::from(half::add(Format::Bf16, old as u16, b as u16)),
        AtomicKind::AddF16x2 => pair(half::add, Format::F16),
        AtomicKind::AddBf16x2 => pair(half::add, Format::Bf16),
        AtomicKind::Increment => {
            if old >= b {
                0
            } else {
                old + 1
            }
        }
        AtomicKind::Decrement => {
            if old == 0 || old > b {
                b
            } else {
                old - 1
            }
        }
        AtomicKind::MinU => old.min(b),
        AtomicKind::MaxU => old.max(b),
        AtomicKind::MinS => signed(old).min(signed(b)) as u64,
        AtomicKind::MaxS => signed(old).max(signed(b)) as u64,
    }
}
