//! Barriers and the instructions by which the lanes of a warp communicate.

use std::rc::Rc;

use super::block::{Block, Warp};
use super::messages::uninitialised_register;
use super::warp::{lanes_of, set};
use super::{Launch, Step, Trap};
use crate::lanes::Lane;
use crate::lower::{Op, Reduce, Redux, Shuffle, Slot, WarpOp};
use crate::race;
use crate::report::Check;

impl Launch<'_> {
    /// Lanes of a warp arrive at a barrier.
    pub(super) fn arrive(&mut self, block: &mut Block, w: usize, pc: u32, mask: u32) -> Step {
        let Op::Barrier {
            id,
            aligned,
            arrive,
            ..
        } = &self.code.insts[pc as usize].op
        else {
            return Ok(());
        };
        let warp = &mut block.warps[w];
        let lane = mask.trailing_zeros() as usize;
        if *aligned && let Some(other) = lanes_of(warp.at_barrier).find(|&l| warp.pcs[l] != pc) {
            let line = self.code.insts[warp.pcs[other] as usize].line;
            return Err(Trap::new(
                Check::DivergentBarrier,
                lane,
                format!("lane {other} of the same warp waits at another barrier, ptx line {line}"),
            ));
        }
        for lane in lanes_of(mask) {
            let id = warp.lanes.get(id.row, id.wide, lane);
            if id > 15 {
                return Err(Trap::new(
                    Check::Unsupported,
                    lane,
                    format!("barrier {id} of 16"),
                ));
            }
            warp.barrier[lane] = id as u8;
        }
        let number = usize::from(warp.barrier[lane]);
        if *arrive {
            let arrived = &mut block.arrived[number].0;
            *arrived = arrived.saturating_add(mask.count_ones());
            block.arrived[number].1 |= 1 << w;
            set(&mut warp.pcs, mask, pc + 1);
        } else {
            warp.at_barrier |= mask;
            self.check_exited(block, w)?;
        }
        self.release(block, number)
    }

    /// Lanes have returned: barriers and warp instructions no longer wait for them. The error has the
    /// program counter of the lane that does wait.
    pub(super) fn exited(&mut self, block: &mut Block, w: usize) -> Result<(), (u32, Box<Trap>)> {
        let code = self.code;
        let place = |block: &Block, t: Box<Trap>| (block.warps[w].pcs[t.lane], t);
        self.check_exited(block, w).map_err(|t| place(block, t))?;
        for lane in lanes_of(block.warps[w].at_warp_op) {
            let pc = block.warps[w].pcs[lane];
            let waits = block.warps[w].at_warp_op & (1 << lane) != 0;
            if let (true, Op::Warp { members, op }) = (waits, &code.insts[pc as usize].op) {
                self.warp_op(block, w, pc, 1 << lane, *members, op)
                    .map_err(|t| (pc, t))?;
            }
        }
        for id in 0..16 {
            let here = |w: &Warp| lanes_of(w.at_barrier).any(|l| usize::from(w.barrier[l]) == id);
            if block.warps.iter().any(here) {
                self.release(block, id).map_err(|t| place(block, t))?;
            }
        }
        Ok(())
    }

    /// An aligned barrier is executed by all lanes of a warp or by none.
    fn check_exited(&self, block: &Block, w: usize) -> Step {
        let warp = &block.warps[w];
        if warp.at_barrier == 0 || warp.runnable() != 0 {
            return Ok(());
        }
        let gone = warp.members & !warp.alive;
        for lane in lanes_of(warp.at_barrier) {
            let aligned = matches!(
                self.code.insts[warp.pcs[lane] as usize].op,
                Op::Barrier { aligned: true, .. }
            );
            if aligned && gone != 0 {
                let other = warp.index * 32 + gone.trailing_zeros();
                return Err(Trap::new(
                    Check::BarrierAfterExit,
                    lane,
                    format!(
                        "waits at a barrier, but thread {:?} of the same warp has returned",
                        self.thread_id(other)
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Opens barrier `id` if all threads have arrived.
    fn release(&mut self, block: &mut Block, id: usize) -> Step {
        let waits = |w: &Warp, l: usize| usize::from(w.barrier[l]) == id;
        let mut waiting = 0;
        let mut alive = 0;
        let mut warps_here = block.arrived[id].1;
        let mut first = None;
        for (i, w) in block.warps.iter().enumerate() {
            alive += w.alive.count_ones();
            for l in lanes_of(w.at_barrier).filter(|&l| waits(w, l)) {
                waiting += 1;
                warps_here |= 1 << i;
                first.get_or_insert((i, l));
            }
        }
        let Some((fw, fl)) = first else { return Ok(()) };
        let pc = block.warps[fw].pcs[fl];
        let Op::Barrier {
            threads, reduce, ..
        } = &self.code.insts[pc as usize].op
        else {
            return Ok(());
        };
        let total = block.arrived[id].0.saturating_add(waiting);
        let expected = match threads {
            Some(s) => block.warps[fw].lanes.get(s.row, s.wide, fl) as u32,
            None => alive,
        };
        if threads.is_some() && total > expected {
            return Err(Trap::new(
                Check::DivergentBarrier,
                fl,
                format!("{total} threads at a barrier of {expected}"),
            ));
        }
        if total < expected {
            return Ok(());
        }
        let clock = race::tick();
        if threads.is_none() || expected == self.threads {
            block.barrier_clock = clock;
            block.partial.clear();
            for w in &mut block.warps {
                w.syncs.clear();
            }
        } else {
            block.partial.push((clock, warps_here));
        }
        block.arrived[id] = (0, 0);
        let reduce = *reduce;
        let mut count = 0;
        if let Some((_, p, negated, _)) = reduce {
            for w in &block.warps {
                let value = w.lanes.preds[p as usize] ^ if negated { u32::MAX } else { 0 };
                count += lanes_of(w.at_barrier & value)
                    .filter(|&l| waits(w, l))
                    .count() as u32;
            }
        }
        let warps = block.warps.iter().enumerate();
        let acquired = warps
            .filter(|(i, _)| warps_here & 1 << i != 0)
            .map(|(_, w)| w.acquired)
            .max()
            .unwrap_or(0);
        share_with(&mut block.warps, warps_here);
        for w in &mut block.warps {
            if warps_here & 1 << w.index != 0 {
                w.acquired = acquired;
            }
            let released = lanes_of(w.at_barrier)
                .filter(|&l| waits(w, l))
                .fold(0, |m, l| m | 1 << l);
            for l in lanes_of(released) {
                w.pcs[l] += 1;
            }
            w.at_barrier &= !released;
            if let Some((kind, _, _, d)) = reduce {
                let (value, is_pred) = match kind {
                    Reduce::Popc => (count, false),
                    Reduce::And => (if count == waiting { u32::MAX } else { 0 }, true),
                    Reduce::Or => (if count > 0 { u32::MAX } else { 0 }, true),
                };
                if is_pred {
                    let p = &mut w.lanes.preds[d as usize];
                    *p = *p & !released | value & released;
                    w.lanes.written[self.code.rows + d as usize] |= released;
                } else {
                    u32::store(&mut w.lanes, d, released, &[value; 32]);
                    w.lanes.written[d as usize] |= released;
                }
            }
        }
        Ok(())
    }

    /// Lanes arrive at a warp instruction. Executes it, for all lanes that a mask names, as soon as
    /// they are all there; true if that was for exactly these lanes.
    pub(super) fn warp_op(
        &mut self,
        block: &mut Block,
        w: usize,
        pc: u32,
        mask: u32,
        members: Slot,
        op: &WarpOp,
    ) -> Step<bool> {
        let rows = self.code.rows;
        let warp = &mut block.warps[w];
        let unwritten = mask & !warp.lanes.written[members.row as usize];
        if unwritten != 0 {
            return Err(uninitialised_register(unwritten, "its member mask"));
        }
        warp.at_warp_op |= mask;
        let masks = u32::load(&warp.lanes, members.row);
        let outside = (0..32).fold(0, |m, l| m | (!masks[l] & 1 << l)) & mask;
        if outside != 0 {
            let lane = outside.trailing_zeros() as usize;
            let m = masks[lane];
            return Err(Trap::new(
                Check::MemberMask,
                lane,
                format!("the member mask {m:#010x} does not contain lane {lane} that executes it"),
            ));
        }
        let mut rest = mask;
        let mut done = 0;
        while rest != 0 {
            let lane = rest.trailing_zeros() as usize;
            let m = masks[lane];
            // The lanes that wait here with this mask, and the lanes that must arrive.
            let mut here = 0;
            for l in lanes_of(warp.at_warp_op) {
                if warp.pcs[l] == pc && masks[l] == m {
                    here |= 1 << l;
                }
            }
            rest &= !here;
            if here == m & warp.alive {
                communicate(&mut warp.lanes, rows, here, op)?;
                if matches!(op, WarpOp::Sync) {
                    warp.syncs.push((race::tick(), here));
                    if warp.syncs.len() > 64 {
                        warp.syncs.remove(0);
                    }
                }
                warp.at_warp_op &= !here;
                set(&mut warp.pcs, here, pc + 1);
                done |= here;
            }
        }
        Ok(done == mask)
    }
}

/// Merges what warps that have met at a barrier know of the other blocks of their cluster.
fn share_with(warps: &mut [Warp], here: u32) {
    let mut landed = race::Landed::default();
    let mut met: Option<Rc<race::Meeting>> = None;
    for w in warps.iter().filter(|w| here & 1 << w.index != 0) {
        landed.learn(&w.landed);
        if w.met.as_ref().map(|m| m.clock) > met.as_ref().map(|m| m.clock) {
            met.clone_from(&w.met);
        }
    }
    for w in warps.iter_mut().filter(|w| here & 1 << w.index != 0) {
        w.landed.clone_from(&landed);
        w.met.clone_from(&met);
    }
}

/// Executes a warp instruction for the lanes `here`.
fn communicate(l: &mut crate::lanes::Lanes, rows: usize, here: u32, op: &WarpOp) -> Step {
    let write = |l: &mut crate::lanes::Lanes, d: &Slot, values: &[u32; 32], known: u32| {
        u32::store(l, d.row, here, values);
        let r = &mut l.written[d.row as usize];
        *r = *r & !here | here & known;
    };
    let write_pred = |l: &mut crate::lanes::Lanes, p: u32, value: u32, known: u32| {
        let v = &mut l.preds[p as usize];
        *v = *v & !here | value & here;
        let r = &mut l.written[rows + p as usize];
        *r = *r & !here | here & known;
    };
    let vote = |l: &crate::lanes::Lanes, p: u32, negated: bool| -> Step<u32> {
        let unwritten = here & !l.written[rows + p as usize];
        if unwritten != 0 {
            return Err(uninitialised_register(unwritten, "its source"));
        }
        Ok((l.preds[p as usize] ^ if negated { u32::MAX } else { 0 }) & here)
    };
    let all = |yes: bool| if yes { u32::MAX } else { 0 };
    match op {
        WarpOp::Shuffle {
            mode,
            d,
            p,
            a,
            b,
            c,
        } => {
            let (av, bv, cv) = (
                u32::load(l, a.row),
                u32::load(l, b.row),
                u32::load(l, c.row),
            );
            let controls = here & !(l.written[b.row as usize] & l.written[c.row as usize]);
            if controls != 0 {
                return Err(uninitialised_register(controls, "its lane operand"));
            }
            let (mut out, mut in_range, mut known) = ([0; 32], 0, 0);
            for lane in lanes_of(here) {
                let (offset, clamp, segment) = (bv[lane] & 31, cv[lane] & 31, cv[lane] >> 8 & 31);
                let i = lane as u32;
                let (first, last) = (i & segment, i & segment | clamp & !segment);
                let (from, inside) = match mode {
                    // For `up` the clamp is the lowest lane.
                    Shuffle::Up => (
                        i.wrapping_sub(offset),
                        i as i32 - offset as i32 >= last as i32,
                    ),
                    Shuffle::Down => (i + offset, i + offset <= last),
                    Shuffle::Butterfly => (i ^ offset, i ^ offset <= last),
                    Shuffle::Index => {
                        (first | offset & !segment, first | offset & !segment <= last)
                    }
                };
                let from = if inside { from } else { i };
                if here & (1 << from) == 0 {
                    return Err(Trap::new(
                        Check::InactiveLane,
                        lane,
                        format!("lane {lane} reads lane {from}, which does not take part"),
                    ));
                }
                out[lane] = av[from as usize];
                in_range |= u32::from(inside) << lane;
                known |= (l.written[a.row as usize] >> from & 1) << lane;
            }
            write(l, d, &out, known);
            if let Some(p) = p {
                write_pred(l, *p, in_range, u32::MAX);
            }
        }
        WarpOp::VoteAll(p, negated, d) => {
            let v = vote(l, *p, *negated)?;
            write_pred(l, *d, all(v == here), u32::MAX);
        }
        WarpOp::VoteAny(p, negated, d) => {
            let v = vote(l, *p, *negated)?;
            write_pred(l, *d, all(v != 0), u32::MAX);
        }
        WarpOp::VoteUniform(p, negated, d) => {
            let v = vote(l, *p, *negated)?;
            write_pred(l, *d, all(v == 0 || v == here), u32::MAX);
        }
        WarpOp::Ballot(p, negated, d) => {
            let v = vote(l, *p, *negated)?;
            write(l, d, &[v; 32], u32::MAX);
        }
        WarpOp::Redux(kind, d, a) => {
            let unwritten = here & !l.written[a.row as usize];
            if unwritten != 0 {
                return Err(uninitialised_register(unwritten, "its source"));
            }
            let v = u32::load(l, a.row);
            let values = lanes_of(here).map(|i| v[i]);
            let r = values.reduce(|x, y| match kind {
                Redux::Add => x.wrapping_add(y),
                Redux::MinU => x.min(y),
                Redux::MaxU => x.max(y),
                Redux::MinS => (x as i32).min(y as i32) as u32,
                Redux::MaxS => (x as i32).max(y as i32) as u32,
                Redux::And => x & y,
                Redux::Or => x | y,
                Redux::Xor => x ^ y,
            });
            write(l, d, &[r.unwrap_or(0); 32], u32::MAX);
        }
        WarpOp::Sync => {}
    }
    Ok(())
}
