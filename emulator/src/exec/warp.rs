//! The interpreter loop of a warp.

use super::block::Block;
use super::messages::uninitialised_register;
use super::{Launch, Trap};
use crate::lanes::Lane;
use crate::lower::Op;
use crate::report::Check;

/// Instructions that a group of lanes may run while others of its warp wait with a higher program
/// counter: lanes may spin until the others go on.
const PATIENCE: u64 = 1 << 20;
/// Instructions after which another warp of the block gets its turn.
const TURN: u64 = 1 << 22;

impl Launch<'_> {
    /// Runs a warp until all of its lanes wait or have returned, or for so many instructions. In
    /// the second case lanes are taken apart at random. The error has the program counter.
    pub(super) fn run_warp(
        &mut self,
        block: &mut Block,
        w: usize,
        steps: Option<u64>,
    ) -> Result<(), (u32, Box<Trap>)> {
        let code = self.code;
        let budget = self.settings.instruction_budget;
        let turn_end = block.warps[w].steps + steps.unwrap_or(TURN.min(budget));
        loop {
            let warp = &mut block.warps[w];
            let runnable = warp.runnable();
            if runnable == 0 || warp.steps >= turn_end {
                return Ok(());
            }
            // The lanes that run together, and the program counter at which they meet others.
            let (mut pc, mut limit) = lowest(&warp.pcs, runnable);
            let mut until = turn_end;
            // A random slice either takes lanes apart, or lets those that lag behind catch up.
            let apart = steps.is_some() && self.rng.next().is_multiple_of(2);
            if apart {
                let nth = self.rng.below(runnable.count_ones() as usize);
                let lane = (0..32)
                    .filter(|l| runnable & (1 << l) != 0)
                    .nth(nth)
                    .unwrap_or(0);
                pc = warp.pcs[lane];
                limit = u32::MAX;
            } else if limit != u32::MAX {
                until = until.min(warp.steps + PATIENCE);
                if warp.steps / PATIENCE % 2 == 1 && warp.steps > PATIENCE {
                    // Some lanes have been running for long, so the others run now.
                    pc = (0..32)
                        .filter(|l| runnable & (1 << l) != 0)
                        .map(|l| warp.pcs[l])
                        .max()
                        .unwrap_or(pc);
                    limit = u32::MAX;
                    until = until.min(warp.steps + 1024);
                }
            }
            let mut active = at(&warp.pcs, runnable, pc);
            if apart && self.rng.next().is_multiple_of(2) {
                // A random part of the group, not empty.
                let part = active & self.rng.next() as u32;
                active = if part == 0 {
                    active & active.wrapping_neg()
                } else {
                    part
                };
            }
            loop {
                let inst = &code.insts[pc as usize];
                let warp = &mut block.warps[w];
                warp.steps += 1;
                let mask = match inst.guard {
                    None => active,
                    Some((p, negated)) => {
                        let unwritten = active & !warp.lanes.written[code.rows + p as usize];
                        if unwritten != 0 {
                            return Err((
                                pc,
                                uninitialised_register(unwritten, "its guard predicate"),
                            ));
                        }
                        active & (warp.lanes.preds[p as usize] ^ if negated { u32::MAX } else { 0 })
                    }
                };
                self.totals.counts[pc as usize] += u64::from(mask.count_ones());
                // Whether the group goes on with the next instruction.
                let mut straight = true;
                match &inst.op {
                    Op::Alu {
                        run,
                        sources,
                        results,
                    } => {
                        if mask != 0 {
                            let lanes = &mut warp.lanes;
                            run(lanes, mask);
                            let [a, b, c, d] = *sources;
                            let known = lanes.written[a as usize]
                                & lanes.written[b as usize]
                                & lanes.written[c as usize]
                                & lanes.written[d as usize];
                            for &r in results {
                                let r = &mut lanes.written[r as usize];
                                *r = *r & !mask | mask & known;
                            }
                        }
                    }
                    Op::Select { d, a, b, p } => {
                        let lanes = &mut warp.lanes;
                        let p = *p as usize;
                        let choice = lanes.preds[p];
                        let written = |s: crate::lower::Slot| lanes.written[s.row as usize];
                        let known = (choice & written(*a) | !choice & written(*b))
                            & lanes.written[code.rows + p];
                        if d.wide {
                            select::<u64>(lanes, mask, choice, d.row, a.row, b.row);
                        } else {
                            select::<u32>(lanes, mask, choice, d.row, a.row, b.row);
                        }
                        let r = &mut lanes.written[d.row as usize];
                        *r = *r & !mask | mask & known;
                    }
                    Op::Load(access) => {
                        if mask != 0 {
                            self.load(block, w, access, mask).map_err(|t| (pc, t))?;
                        }
                    }
                    Op::Store(access) => {
                        if mask != 0 {
                            self.store(block, w, access, mask).map_err(|t| (pc, t))?;
                        }
                    }
                    Op::Atomic(access, op) => {
                        if mask != 0 {
                            self.atomic(block, w, access, op, mask)
                                .map_err(|t| (pc, t))?;
                        }
                    }
                    Op::Branch(target) => {
                        if mask == active {
                            pc = *target;
                            if pc >= limit || warp.steps >= until {
                                set(&mut warp.pcs, active, pc);
                                break;
                            }
                            continue;
                        }
                        if mask != 0 {
                            set(&mut warp.pcs, mask, *target);
                            set(&mut warp.pcs, active & !mask, pc + 1);
                            straight = false;
                        }
                    }
                    Op::BranchIndexed(index, targets) => {
                        let unwritten = mask & !warp.lanes.written[index.row as usize];
                        if unwritten != 0 {
                            return Err((pc, uninitialised_register(unwritten, "its index")));
                        }
                        set(&mut warp.pcs, active & !mask, pc + 1);
                        for lane in lanes_of(mask) {
                            let i = warp.lanes.get(index.row, index.wide, lane) as usize;
                            match targets.get(i) {
                                Some(t) => warp.pcs[lane] = *t,
                                None => {
                                    let message = format!("index {i} of {} targets", targets.len());
                                    return Err((pc, Trap::new(Check::OutOfBounds, lane, message)));
                                }
                            }
                        }
                        straight = false;
                    }
                    Op::Barrier { .. } => {
                        set(&mut warp.pcs, active & !mask, pc + 1);
                        set(&mut warp.pcs, mask, pc);
                        if mask != 0 {
                            self.arrive(block, w, pc, mask).map_err(|t| (pc, t))?;
                        }
                        straight = false;
                    }
                    Op::Warp { members, op } => {
                        set(&mut warp.pcs, active & !mask, pc + 1);
                        set(&mut warp.pcs, mask, pc);
                        // The usual case first: all lanes are here.
                        let done = mask == 0
                            || self
                                .warp_op(block, w, pc, mask, *members, op)
                                .map_err(|t| (pc, t))?;
                        straight = done && mask == active;
                    }
                    Op::Cluster(op) => {
                        set(&mut warp.pcs, active & !mask, pc + 1);
                        set(&mut warp.pcs, mask, pc);
                        if mask != 0 {
                            self.cluster_op(block, w, pc, mask, op)
                                .map_err(|t| (pc, t))?;
                        }
                        straight = false;
                    }
                    Op::Fence => {
                        warp.fenced |= mask;
                    }
                    Op::Exit => {
                        warp.alive &= !mask;
                        set(&mut warp.pcs, mask, pc);
                        set(&mut warp.pcs, active & !mask, pc + 1);
                        self.exited(block, w)?;
                        straight = false;
                    }
                    Op::Trap => {
                        if mask != 0 {
                            return Err((
                                pc,
                                Trap::new(
                                    Check::Trap,
                                    mask.trailing_zeros() as usize,
                                    "was executed",
                                ),
                            ));
                        }
                    }
                    Op::Nothing => {}
                }
                if !straight {
                    break;
                }
                pc += 1;
                let warp = &mut block.warps[w];
                if pc >= limit || warp.steps >= until {
                    set(&mut warp.pcs, active, pc);
                    break;
                }
            }
            let warp = &block.warps[w];
            if warp.steps > budget {
                let message = format!("a warp executed {budget} instructions and has not ended");
                return Err((
                    pc,
                    Trap::new(
                        Check::InstructionBudget,
                        active.trailing_zeros() as usize,
                        message,
                    ),
                ));
            }
        }
    }
}

fn select<T: Lane>(l: &mut crate::lanes::Lanes, mask: u32, choice: u32, d: u32, a: u32, b: u32) {
    let (a, mut out) = (T::load(l, a), T::load(l, b));
    for i in 0..32 {
        out[i] = if choice & (1 << i) != 0 { a[i] } else { out[i] };
    }
    T::store(l, d, mask, &out);
}

/// The lanes of a mask.
pub(super) fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}

/// The lanes among `of` whose program counter is `pc`.
fn at(pcs: &[u32; 32], of: u32, pc: u32) -> u32 {
    let mut m = 0;
    for (i, &p) in pcs.iter().enumerate() {
        m |= u32::from(p == pc) << i;
    }
    m & of
}

/// The lowest program counter of some lanes, and the next one.
fn lowest(pcs: &[u32; 32], of: u32) -> (u32, u32) {
    let (mut first, mut second) = (u32::MAX, u32::MAX);
    for lane in lanes_of(of) {
        let p = pcs[lane];
        if p < first {
            second = first;
            first = p;
        } else if p > first && p < second {
            second = p;
        }
    }
    (first, second)
}

/// Sets the program counter of some lanes.
pub(super) fn set(pcs: &mut [u32; 32], mask: u32, pc: u32) {
    if mask == u32::MAX {
        *pcs = [pc; 32];
        return;
    }
    for lane in lanes_of(mask) {
        pcs[lane] = pc;
    }
}
