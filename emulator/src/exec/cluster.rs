//! Clusters: the barrier of all their threads, mbarriers, and stores into the shared memory of a peer.
//!
//! An asynchronous store arrives when the scheduler decides: immediately, or under [`Schedule::Seeded`] at any time and in
//! any order. A thread that reads the stored bytes must have waited for the phase of the mbarrier that counts them.

use std::rc::Rc;

use super::block::Block;
use super::messages::uninitialised_register;
use super::warp::{lanes_of, set};
use super::{Launch, Step, Trap};
use crate::lower::{Base, ClusterOp, Slot};
use crate::memory::{FORBIDDEN, of_peer};
use crate::race::{self, Known, Landed, Meeting, Order};
use crate::report::{Check, Finding};
use crate::settings::Schedule;

/// The ISA's range of the bytes that an mbarrier waits for.
const MAX_BYTES: i64 = (1 << 20) - 1;

/// An object of `mbarrier` instructions, kept beside the shared memory at its address.
pub(super) struct Mbarrier {
    offset: u64,
    /// As in [`race::channel`].
    channel: u64,
    /// Stamp of its initialisation, and whether a fence has told the cluster of it.
    initialised: u64,
    published: bool,
    /// Arrivals in each phase, and those that this one lacks.
    count: u32,
    pending: u32,
    /// Bytes that the phase waits for; negative while some came before they were expected.
    bytes: i64,
    /// Phases that are complete, of those the ones that somebody has waited for, and the clock of the last.
    phase: u64,
    waited: u64,
    completed: u64,
    /// What the senders of this phase's stores have read and known, and the same of the phases that are complete.
    arrived: Landed,
    sent: Landed,
}

impl Mbarrier {
    /// Begins the next phase if this one is complete.
    fn advance(&mut self) -> bool {
        let complete = self.pending == 0 && self.bytes == 0;
        if complete {
            self.phase += 1;
            self.pending = self.count;
            self.completed = race::tick();
            self.sent.learn(&std::mem::take(&mut self.arrived));
        }
        complete
    }
}

/// An asynchronous store that has not arrived yet, and the order of its thread when it was sent.
pub(super) struct AsyncStore {
    pc: u32,
    /// Number of the sending block, and the thread in it.
    block: u64,
    thread: u32,
    /// Rank of the receiving block, and the places there.
    rank: u64,
    offset: u64,
    mbarrier: u64,
    values: Vec<u32>,
    issued: u64,
    barrier: u64,
    partial: Vec<(u64, u32)>,
    syncs: Vec<(u64, u32)>,
    acquired: u64,
    met: Option<Rc<Meeting>>,
    landed: Landed,
}

impl AsyncStore {
    /// What orders the sending thread after earlier accesses to the memory of the receiver.
    fn order<'a>(&'a self, launch: &'a Launch, floor: u64) -> Order<'a> {
        Order {
            floor,
            barrier: self.barrier,
            partial: &self.partial,
            warp_syncs: &self.syncs,
            warp: self.thread / 32,
            released: &launch.released,
            acquired: self.acquired,
            lenient: false,
            met: self.met.as_deref(),
            landed: &self.landed,
            cluster: launch.size(),
            concurrent: false,
        }
    }
}

impl Launch<'_> {
    /// Lanes execute an instruction. Those that must wait stay where they are.
    pub(super) fn cluster_op(
        &mut self,
        block: &mut Block,
        w: usize,
        pc: u32,
        mask: u32,
        op: &ClusterOp,
    ) -> Step {
        match op {
            ClusterOp::Arrive => {
                let warp = &mut block.warps[w];
                let again = mask & (warp.cluster_arrived | warp.cluster_open);
                if again != 0 {
                    return Err(Trap::new(
                        Check::ClusterBarrier,
                        again.trailing_zeros() as usize,
                        "arrives again without having waited",
                    ));
                }
                warp.cluster_arrived |= mask;
                warp.brought.clone_from(&warp.landed);
                let clock = race::tick();
                for lane in lanes_of(mask) {
                    warp.arrivals[lane] = clock;
                }
            }
            ClusterOp::Wait { aligned } => return self.wait(block, w, pc, mask, *aligned),
            ClusterOp::Init { mbarrier, count } => {
                self.init(block, w, mask, *mbarrier, *count)?;
            }
            ClusterOp::PublishInits => {
                let index = block.warps[w].index;
                for m in &mut block.mbarriers {
                    let (_, thread) = race::who(m.initialised);
                    let mut mine = lanes_of(mask).map(|lane| index * 32 + lane as u32);
                    m.published |= mine.any(|mine| Some(mine) == thread);
                }
            }
            ClusterOp::Expect { mbarrier, bytes } => {
                let bytes = values(block, w, mask, *bytes)?;
                for (lane, at) in places(block, w, mask, *mbarrier)? {
                    let m = self.mbarrier(block, w, lane, at)?;
                    let m = &mut block.mbarriers[m];
                    m.bytes += i64::from(bytes[lane]);
                    if m.bytes > MAX_BYTES {
                        return Err(beyond(lane, m));
                    }
                    if m.pending == 0 {
                        let message = format!("more than the {} arrivals of a phase", m.count);
                        return Err(Trap::new(Check::Mbarrier, lane, message));
                    }
                    m.pending -= 1;
                    if m.advance() {
                        wake(block);
                    }
                }
            }
            ClusterOp::TryWait {
                d,
                mbarrier,
                parity,
            } => return self.try_wait(block, w, pc, mask, *d, *mbarrier, *parity),
            ClusterOp::Store {
                to,
                mbarrier,
                elements,
            } => self.send(block, w, pc, mask, (*to, *mbarrier), elements)?,
        }
        set(&mut block.warps[w].pcs, mask, pc + 1);
        Ok(())
    }

    /// Lanes wait for the barrier of the cluster.
    fn wait(&self, block: &mut Block, w: usize, pc: u32, mask: u32, aligned: bool) -> Step {
        let warp = &mut block.warps[w];
        let absent = mask & !(warp.cluster_arrived | warp.cluster_open);
        if absent != 0 {
            return Err(Trap::new(
                Check::ClusterBarrier,
                absent.trailing_zeros() as usize,
                "waits without having arrived",
            ));
        }
        let mut others = lanes_of(warp.at_cluster);
        if aligned && let Some(other) = others.find(|&l| warp.pcs[l] != pc) {
            let line = self.code.insts[warp.pcs[other] as usize].line;
            return Err(Trap::new(
                Check::DivergentBarrier,
                mask.trailing_zeros() as usize,
                format!("lane {other} of the same warp waits at another barrier, ptx line {line}"),
            ));
        }
        let open = mask & warp.cluster_open;
        if open != 0 {
            warp.cluster_open &= !open;
            if let Some(met) = warp.opened.clone() {
                warp.meet(&met);
            }
            set(&mut warp.pcs, open, pc + 1);
        }
        warp.at_cluster |= mask & !open;
        Ok(())
    }

    fn init(&mut self, block: &mut Block, w: usize, mask: u32, at: Base, count: Slot) -> Step {
        let counts = values(block, w, mask, count)?;
        for (lane, offset) in places(block, w, mask, at)? {
            let shared = &block.shared;
            let inside =
                shared.contains(offset, 8) && (0..8).all(|i| shared.state(offset + i) != FORBIDDEN);
            let count = counts[lane];
            let problem = match () {
                () if offset % 8 != 0 => Some((Check::Misaligned, "an mbarrier is aligned to 8")),
                () if !inside => Some((Check::OutOfBounds, "outside of every variable")),
                () if count == 0 || i64::from(count) > MAX_BYTES => {
                    Some((Check::Mbarrier, "a phase takes 1 to 2^20 - 1 arrivals"))
                }
                () if block.mbarriers.iter().any(|m| m.offset == offset) => {
                    Some((Check::Mbarrier, "it is one already"))
                }
                () => None,
            };
            if let Some((check, message)) = problem {
                let message = format!("shared address {offset}, count {count}: {message}");
                return Err(Trap::new(check, lane, message));
            }
            shared.store(offset, 8, u64::from(count));
            shared.mark_written(offset, 8);
            let thread = block.warps[w].index * 32 + lane as u32;
            block.mbarriers.push(Mbarrier {
                offset,
                channel: race::channel(self.mbarriers),
                initialised: race::stamp(race::now(), block.linear, thread, false),
                published: false,
                count,
                pending: count,
                bytes: 0,
                phase: 0,
                waited: 0,
                completed: 0,
                arrived: Landed::default(),
                sent: Landed::default(),
            });
            self.mbarriers += 1;
        }
        Ok(())
    }

    /// The mbarrier at a shared address of the block, for a thread of the block.
    fn mbarrier(&self, block: &Block, w: usize, lane: usize, offset: u64) -> Step<usize> {
        let warp = &block.warps[w];
        let order = self.order_of(block, warp);
        let thread = warp.index * 32 + lane as u32;
        let now = race::tick();
        let me = race::stamp(now, block.linear, thread, false);
        find(block, lane, offset, |m| {
            order.ordered_before_issue(m.initialised, me, now)
        })
    }

    #[allow(clippy::too_many_arguments)]
    fn try_wait(
        &mut self,
        block: &mut Block,
        w: usize,
        pc: u32,
        mask: u32,
        d: u32,
        at: Base,
        parity: Slot,
    ) -> Step {
        let parities = values(block, w, mask, parity)?;
        let may_give_up = matches!(self.settings.schedule, Schedule::Seeded(_));
        let written = self.code.rows + d as usize;
        for (lane, offset) in places(block, w, mask, at)? {
            let m = self.mbarrier(block, w, lane, offset)?;
            let (m, warp) = (&mut block.mbarriers[m], &mut block.warps[w]);
            let complete = m.phase & 1 != u64::from(parities[lane] & 1);
            if complete {
                m.waited = m.phase;
                warp.landed.note(Known::Phase(m.channel), m.completed);
                warp.landed.learn(&m.sent);
            } else if !(may_give_up && self.rng.next().is_multiple_of(4)) {
                warp.at_mbarrier |= 1 << lane;
                continue;
            }
            let p = &mut warp.lanes.preds[d as usize];
            *p = *p & !(1 << lane) | u32::from(complete) << lane;
            warp.lanes.written[written] |= 1 << lane;
            warp.pcs[lane] = pc + 1;
        }
        Ok(())
    }

    /// Lanes send something to a block of the cluster.
    fn send(
        &mut self,
        block: &Block,
        w: usize,
        pc: u32,
        mask: u32,
        (to, mbarrier): (Base, Base),
        elements: &[Slot],
    ) -> Step {
        let columns = elements.iter().map(|&e| values(block, w, mask, e));
        let columns = columns.collect::<Step<Vec<_>>>()?;
        let warp = &block.warps[w];
        let mbarriers = places(block, w, mask, mbarrier)?;
        for ((lane, to), (_, mbarrier)) in places(block, w, mask, to)?.into_iter().zip(mbarriers) {
            let (own, size) = (block.linear % self.size(), 4 * elements.len() as u64);
            let ((rank, offset), (other, mbarrier)) = (of_peer(to), of_peer(mbarrier));
            let rank = rank.unwrap_or(own);
            let problem = match () {
                () if rank >= self.size() => Some((Check::OutOfBounds, "no such block")),
                () if other.unwrap_or(own) != rank => {
                    Some((Check::OutOfBounds, "the mbarrier is not of that block"))
                }
                () if offset % size != 0 => Some((Check::Misaligned, "not a multiple of its size")),
                () => None,
            };
            if let Some((check, message)) = problem {
                let message = format!(
                    "{size}-byte store to shared address {offset} of rank {rank} of a cluster of {}: {message}",
                    self.size()
                );
                return Err(Trap::new(check, lane, message));
            }
            self.on_their_way.push(AsyncStore {
                pc,
                block: block.linear,
                thread: warp.index * 32 + lane as u32,
                rank,
                offset,
                mbarrier,
                values: columns.iter().map(|c| c[lane]).collect(),
                issued: race::tick(),
                barrier: block.barrier_clock,
                partial: block.partial.clone(),
                syncs: warp.syncs.clone(),
                acquired: warp.acquired,
                met: warp.met.clone(),
                landed: warp.landed.clone(),
            });
        }
        Ok(())
    }

    /// Blocks of a cluster.
    fn size(&self) -> u64 {
        u64::from(self.request.cluster)
    }

    /// Work between the instructions of a cluster's threads: stores arrive, and the barrier opens.
    pub(super) fn settle(&mut self, cluster: &mut [Block]) -> Result<(), Finding> {
        self.open(cluster);
        let first = cluster[0].linear;
        let stuck = !cluster
            .iter()
            .flat_map(|b| &b.warps)
            .any(|w| w.runnable() != 0);
        let mut i = 0;
        while i < self.on_their_way.len() {
            let reversed = self.settings.schedule == Schedule::Reversed;
            let at = if reversed {
                self.on_their_way.len() - 1 - i
            } else {
                i
            };
            let here = self.on_their_way[at].block / self.size() == first / self.size();
            let seeded = matches!(self.settings.schedule, Schedule::Seeded(_));
            if !here || seeded && !stuck && !self.rng.next().is_multiple_of(4) {
                i += 1;
                continue;
            }
            let store = self.on_their_way.remove(at);
            self.deliver(cluster, &store).map_err(|t| {
                self.finding(t.check, store.pc, store.block, store.thread, t.message)
            })?;
        }
        for block in &*cluster {
            if block.is_done() {
                self.left(block)?;
            }
        }
        Ok(())
    }

    /// Opens the barrier of the cluster if every thread has arrived or returned.
    fn open(&self, cluster: &mut [Block]) {
        let warps = || cluster.iter().flat_map(|b| &b.warps);
        let missing = warps().any(|w| w.alive & !w.cluster_arrived != 0);
        if missing || warps().all(|w| w.cluster_arrived & w.alive == 0) {
            return;
        }
        let clock = race::tick();
        let mut landed = Landed::default();
        warps().for_each(|w| landed.learn(&w.brought));
        let arrivals = warps().flat_map(|w| {
            let has_arrived = |lane: usize| w.cluster_arrived & 1 << lane != 0;
            lanes_of(w.members).map(move |lane| {
                if has_arrived(lane) {
                    w.arrivals[lane]
                } else {
                    clock
                }
            })
        });
        let met = Rc::new(Meeting {
            clock,
            first: cluster[0].linear,
            threads: self.threads as usize,
            arrivals: arrivals.collect(),
            landed,
        });
        for w in cluster.iter_mut().flat_map(|b| &mut b.warps) {
            let waiting = std::mem::take(&mut w.at_cluster);
            for lane in lanes_of(waiting) {
                w.pcs[lane] += 1;
            }
            w.cluster_open = w.alive & !waiting;
            w.cluster_arrived = 0;
            w.opened = Some(met.clone());
            if waiting != 0 {
                w.meet(&met);
            }
        }
    }

    /// A store arrives.
    fn deliver(&mut self, cluster: &mut [Block], store: &AsyncStore) -> Step {
        let lane = store.thread as usize % 32;
        let block = &mut cluster[store.rank as usize];
        let size = 4 * store.values.len() as u64;
        let what = format!(
            "{size}-byte asynchronous store to shared address {} of block {:?}",
            store.offset,
            self.block_id(block.linear)
        );
        if block.is_done() {
            let message = format!("{what}, which has returned");
            return Err(Trap::new(Check::PeerExited, lane, message));
        }
        let inside = block.shared.contains(store.offset, size);
        if !inside || (0..size).any(|i| block.shared.state(store.offset + i) == FORBIDDEN) {
            let message = format!("{what}, outside of every variable");
            return Err(Trap::new(Check::OutOfBounds, lane, message));
        }
        let order = store.order(self, block.floor);
        let issuer = race::stamp(store.issued, store.block, store.thread, false);
        let m = find(block, lane, store.mbarrier, |m| {
            order.ordered_before_issue(m.initialised, issuer, store.issued)
        })?;
        let foreign = store.block != block.linear;
        if foreign && !block.mbarriers[m].published {
            let message = format!("{what}: nothing published its mbarrier (`fence.mbarrier_init`)");
            return Err(Trap::new(Check::Mbarrier, lane, message));
        }
        let me = race::asynchronous(block.mbarriers[m].channel);
        let times = (issuer, store.issued);
        let shadow = &block.shared.shadow;
        if let Err(c) = shadow.write_asynchronously(store.offset, size, me, times, &order) {
            let what = "asynchronous store";
            return Err(self.race(block.linear, lane, &block.shared, store.offset, &c, what));
        }
        for (i, value) in (0..).zip(&store.values) {
            let at = store.offset + 4 * i;
            block.shared.store(at, 4, u64::from(*value));
            block.shared.mark_written(at, 4);
        }
        let m = &mut block.mbarriers[m];
        let sender = Known::Sender(race::stamp(0, store.block, store.thread, false));
        m.arrived.note(sender, store.issued);
        m.arrived.learn(&store.landed);
        m.bytes -= size as i64;
        if m.bytes < -MAX_BYTES {
            return Err(beyond(lane, m));
        }
        if m.advance() {
            wake(block);
        }
        Ok(())
    }

    /// Called when a block has returned. All bytes that its mbarriers expect must have arrived, and a thread must have waited for
    /// them.
    fn left(&self, block: &Block) -> Result<(), Finding> {
        for m in &block.mbarriers {
            let (check, message) = if m.bytes < 0 {
                let message = format!("{} bytes came that no phase expected", -m.bytes);
                (Check::Mbarrier, message)
            } else if m.bytes > 0 || m.pending != m.count || m.waited < m.phase {
                let message = format!(
                    "phase {} was not waited for: stores may be on their way",
                    m.waited
                );
                (Check::PeerExited, message)
            } else {
                continue;
            };
            let message = format!(
                "returned, and of its mbarrier at {} {message}",
                self.place(m)
            );
            let pc = self.code.insts.len() as u32 - 1;
            return Err(self.finding(check, pc, block.linear, 0, message));
        }
        Ok(())
    }

    /// The lines of a deadlock about mbarriers: what their phases wait for.
    pub(super) fn open_phases(&self, cluster: &[Block]) -> String {
        let mut text = String::new();
        for block in cluster {
            if block.warps.iter().all(|w| w.at_mbarrier == 0) {
                continue;
            }
            for m in &block.mbarriers {
                text += &format!(
                    "\n    phase {} of the mbarrier at {} of block {:?} lacks {} arrivals and {} bytes",
                    m.phase,
                    self.place(m),
                    self.block_id(block.linear),
                    m.pending,
                    m.bytes
                );
            }
        }
        text
    }

    /// Where an mbarrier lies.
    fn place(&self, m: &Mbarrier) -> String {
        let variables = &self.code.shared;
        match variables
            .iter()
            .find(|(_, o, s)| (*o..o + s).contains(&m.offset))
        {
            Some((name, start, _)) => format!("offset {} of `{name}`", m.offset - start),
            None => format!("shared address {}", m.offset),
        }
    }
}

/// The mbarrier at a shared address of a block, if its initialisation is ordered before.
fn find(
    block: &Block,
    lane: usize,
    offset: u64,
    ordered: impl Fn(&Mbarrier) -> bool,
) -> Step<usize> {
    let m = block.mbarriers.iter().position(|m| m.offset == offset);
    let message = match m {
        Some(m) if ordered(&block.mbarriers[m]) => return Ok(m),
        Some(_) => "nothing orders its initialisation before this",
        None => "nobody initialised it",
    };
    let message = format!("the mbarrier at shared address {offset}: {message}");
    Err(Trap::new(Check::Mbarrier, lane, message))
}

fn beyond(lane: usize, m: &Mbarrier) -> Box<Trap> {
    let message = format!(
        "{} bytes to wait for: beyond the range of an mbarrier",
        m.bytes
    );
    Trap::new(Check::Mbarrier, lane, message)
}

/// Wakes the lanes that wait for an mbarrier of the block, so that they test it again.
fn wake(block: &mut Block) {
    for w in &mut block.warps {
        w.at_mbarrier = 0;
    }
}

/// An operand of all lanes.
fn values(block: &Block, w: usize, mask: u32, slot: Slot) -> Step<[u32; 32]> {
    let lanes = &block.warps[w].lanes;
    let unwritten = mask & !lanes.written[slot.row as usize];
    if unwritten != 0 {
        return Err(uninitialised_register(unwritten, "an operand"));
    }
    Ok(lanes.load_raw(slot.row, slot.wide).map(|v| v as u32))
}

/// The lanes of a mask, each with the address that it means.
fn places(block: &Block, w: usize, mask: u32, base: Base) -> Step<Vec<(usize, u64)>> {
    let addresses = values(block, w, mask, base.slot)?;
    let address = |lane: usize| u64::from(addresses[lane]).wrapping_add_signed(base.offset);
    Ok(lanes_of(mask).map(|lane| (lane, address(lane))).collect())
}
