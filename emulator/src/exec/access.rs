//! Loads, stores and atomics.
//!
//! A request of a warp is split into [`Group`]s, by the buffers that its lanes address. For each group the order of the
//! accesses is checked first, and then the data are moved.

use super::address::{Group, Kind, Target, addresses};
use super::block::{Block, Warp};
use super::messages::{uninitialised_register, unwritten};
use super::totals::{Touched, widen};
use super::warp::lanes_of;
use super::{Launch, Step, Trap};
use crate::arith::atomic::combine;
use crate::lower::{Access, AtomicOp};
use crate::memory::Buffer;
use crate::race::{self, Order};
use crate::report::Check;

/// The buffer of a target, without borrowing more than it needs.
fn buffer_of<'b>(
    target: Target,
    params: &'b Buffer,
    shared: &'b Buffer,
    local: &'b Buffer,
    touched: &'b [Touched],
) -> &'b Buffer {
    match target {
        Target::Params => params,
        Target::Local => local,
        Target::Shared => shared,
        Target::Global(i) => &touched[i].extent.buffer,
    }
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
            self.order(block, w, a, &group, size, Kind::Load)?;
            let Warp { lanes, local, .. } = &mut block.warps[w];
            let buffer = buffer_of(
                group.target,
                &self.params,
                &block.shared,
                local,
                &self.totals.touched,
            );
            for lane in lanes_of(group.mask) {
                for (i, d) in a.elements.iter().enumerate() {
                    let at = group.offsets[lane] + u64::from(a.width) * i as u64;
                    if !buffer.is_written(at, a.width) {
                        return Err(unwritten(buffer, at, a.width, lane));
                    }
                    let mut value = buffer.load(at, a.width);
                    if a.signed {
                        let s = 64 - 8 * u32::from(a.width);
                        value = ((value << s) as i64 >> s) as u64;
                    }
                    lanes.set(d.row, d.wide, lane, value);
                }
            }
            for d in &a.elements {
                lanes.written[d.row as usize] |= group.mask;
            }
            if a.strong {
                block.warps[w].acquired = race::tick();
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
            self.order(block, w, a, &group, size, Kind::Store)?;
            let buffer = self.buffer(block, w, group.target);
            let lanes = &block.warps[w].lanes;
            for lane in lanes_of(group.mask) {
                for (i, s) in a.elements.iter().enumerate() {
                    let at = group.offsets[lane] + u64::from(a.width) * i as u64;
                    buffer.store(at, a.width, lanes.get(s.row, s.wide, lane));
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
            let shared = match group.target {
                Target::Shared => true,
                Target::Global(_) => false,
                Target::Local | Target::Params => {
                    let message = "atomic on local memory or parameters";
                    let lane = group.mask.trailing_zeros() as usize;
                    return Err(Trap::new(Check::Unsupported, lane, message));
                }
            };
            self.count(&group, size, Kind::Atomic);
            self.order(block, w, a, &group, size, Kind::Atomic)?;
            let Warp { lanes, local, .. } = &mut block.warps[w];
            let buffer = buffer_of(
                group.target,
                &self.params,
                &block.shared,
                local,
                &self.totals.touched,
            );
            for lane in lanes_of(group.mask) {
                let offset = group.offsets[lane];
                if !buffer.is_written(offset, a.width) {
                    return Err(unwritten(buffer, offset, a.width, lane));
                }
                let b = lanes.get(op.b.row, op.b.wide, lane);
                let c = op.c.map_or(0, |c| lanes.get(c.row, c.wide, lane));
                let old = buffer.update(offset, a.width, |old| {
                    combine(op.kind, a.width, shared, old, b, c)
                });
                if let Some(d) = op.d {
                    lanes.set(d.row, d.wide, lane, old);
                }
            }
            if let Some(d) = op.d {
                lanes.written[d.row as usize] |= group.mask;
            }
            block.warps[w].acquired = race::tick();
        }
        Ok(())
    }

    /// Checks that every lane's access is ordered after those that it conflicts with, and records it.
    /// Parameters and local memory belong to a thread.
    #[inline]
    fn order(
        &self,
        block: &Block,
        w: usize,
        a: &Access,
        group: &Group,
        size: u64,
        kind: Kind,
    ) -> Step {
        let (buffer, floor, swaps, concurrent) = match group.target {
            Target::Params | Target::Local => return Ok(()),
            Target::Shared => (&block.shared, block.floor, self.code.swaps[1], false),
            Target::Global(i) => (
                &*self.totals.touched[i].extent.buffer,
                self.floor,
                self.code.swaps[0],
                self.concurrent,
            ),
        };
        let warp = &block.warps[w];
        let order = Order {
            floor,
            lenient: swaps,
            concurrent,
            ..self.order_of(block, warp)
        };
        let stamp = race::stamp(race::now(), block.linear, warp.index * 32, a.strong);
        for lane in lanes_of(group.mask) {
            let offset = group.offsets[lane];
            let me = stamp + ((lane as u64) << 1);
            let shadow = &buffer.shadow;
            let (did, result) = match kind {
                Kind::Load if a.non_coherent => {
                    ("read", shadow.read_non_coherent(offset, size, me, &order))
                }
                Kind::Load => ("read", shadow.read(offset, size, me, &order)),
                Kind::Store => ("write", shadow.write(offset, size, me, &order)),
                Kind::Atomic => ("atomic", shadow.write(offset, size, me, &order)),
            };
            if let Err(c) = result {
                return Err(self.race(block.linear, lane, buffer, offset, &c, did));
            }
        }
        Ok(())
    }

    /// What orders the accesses of a warp after earlier ones to the shared memory of its block.
    pub(super) fn order_of<'o>(&'o self, block: &'o Block, warp: &'o Warp) -> Order<'o> {
        Order {
            floor: block.floor,
            barrier: block.barrier_clock,
            partial: &block.partial,
            warp_syncs: &warp.syncs,
            warp: warp.index,
            released: &self.released,
            acquired: warp.acquired,
            lenient: false,
            met: warp.met.as_deref(),
            landed: &warp.landed,
            cluster: u64::from(self.request.cluster),
            concurrent: false,
        }
    }

    /// An atomic or strong store after a fence publishes what the block did before.
    fn publish(&mut self, block: &Block, w: usize, mask: u32, releases: bool) {
        let warp = &block.warps[w];
        if releases || warp.fenced & mask != 0 {
            let block_bits = race::who(race::stamp(0, block.linear, 0, false)).0;
            let release = race::Release {
                clock: race::tick(),
                warp: warp.index,
                barrier: block.barrier_clock,
                partial: block.partial.clone(),
            };
            let of_block = self.released.entry(block_bits).or_default();
            match of_block.iter_mut().find(|r| r.warp == release.warp) {
                Some(last) => *last = release,
                None => of_block.push(release),
            }
        }
    }

    /// Counts a request, and widens the extents that it goes beyond.
    #[inline]
    fn count(&mut self, group: &Group, size: u64, kind: Kind) {
        if let Target::Global(i) = group.target {
            let (mut first, mut last) = (u64::MAX, 0);
            for (lane, &offset) in group.offsets.iter().enumerate() {
                let here = group.mask >> lane & 1 != 0;
                first = first.min(if here { offset } else { u64::MAX });
                last = last.max(if here { offset } else { 0 });
            }
            let extent = &mut self.totals.touched[i].extent;
            if kind != Kind::Store {
                widen(&mut extent.read, first..last + size);
            }
            if kind != Kind::Load {
                widen(&mut extent.written, first..last + size);
            }
        }
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
                let t = &mut self.totals.touched[i].traffic;
                // Buffers start at a multiple of 32.
                if kind != Kind::Store {
                    t.bytes_read += n as u64 * size;
                    t.loads.add(&mut list[..n], size);
                }
                if kind != Kind::Load {
                    t.bytes_written += n as u64 * size;
                    t.stores.add(&mut list[..n], size);
                }
            }
            _ => self.totals.shared.add(&list[..n], size),
        }
    }
}
