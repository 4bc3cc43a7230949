//! The state of one block and its warps.

use std::rc::Rc;

use super::Launch;
use super::cluster::Mbarrier;
use crate::lanes::Lanes;
use crate::lower::SHARED_START;
use crate::memory::{Buffer, FORBIDDEN, NEVER_WRITTEN, SHARED_BASE};
use crate::race;

/// A warp.
pub(super) struct Warp {
    pub index: u32,
    pub lanes: Lanes,
    /// Lanes that exist and have not returned.
    pub alive: u32,
    /// Lanes that the block has.
    pub members: u32,
    pub pcs: [u32; 32],
    /// Lanes waiting at a barrier, and at which.
    pub at_barrier: u32,
    pub barrier: [u8; 32],
    /// Lanes waiting for others of their warp.
    pub at_warp_op: u32,
    /// Lanes that have arrived at the barrier of the cluster, that wait for it, and for which it is open.
    pub cluster_arrived: u32,
    pub at_cluster: u32,
    pub cluster_open: u32,
    /// Clock of each lane's last arrival there.
    pub arrivals: [u64; 32],
    /// The last time that it opened, and the last that this warp has waited for.
    pub opened: Option<Rc<race::Meeting>>,
    pub met: Option<Rc<race::Meeting>>,
    /// Lanes waiting for a phase of an mbarrier.
    pub at_mbarrier: u32,
    /// The mbarrier phases that order this warp's accesses, now and at its last arrival at the cluster barrier.
    pub landed: race::Landed,
    pub brought: race::Landed,
    /// Instructions executed in this block.
    pub steps: u64,
    /// Lanes that executed a fence.
    pub fenced: u32,
    /// Clock of the last atomic, of this warp or of one that it met at a barrier since.
    pub acquired: u64,
    /// `bar.warp.sync`s since the last barrier: clock and lanes.
    pub syncs: Vec<(u64, u32)>,
    /// Local memory of all lanes, one after the other.
    pub local: Buffer,
}

impl Warp {
    /// Merges the mbarrier phases that other warps knew when they arrived at the cluster barrier.
    pub fn meet(&mut self, met: &Rc<race::Meeting>) {
        self.landed.learn(&met.landed);
        self.met = Some(met.clone());
    }

    /// Lanes that can execute.
    pub fn runnable(&self) -> u32 {
        self.alive & !self.at_barrier & !self.at_warp_op & !self.at_cluster & !self.at_mbarrier
    }
}

/// A running block. The value is reused for many blocks, to save allocations.
pub(super) struct Block {
    pub linear: u64,
    pub warps: Vec<Warp>,
    pub shared: Buffer,
    /// Clock of the last barrier of all threads.
    pub barrier_clock: u64,
    /// Barriers of some warps since then: clock, bit per warp.
    pub partial: Vec<(u64, u32)>,
    /// Threads that have arrived without waiting, for each barrier, and their warps.
    pub arrived: [(u32, u32); 16],
    /// Stamps of shared memory from before this block are below this.
    pub floor: u64,
    pub mbarriers: Vec<Mbarrier>,
}

impl Block {
    pub fn new(launch: &Launch) -> Self {
        let code = launch.code;
        let len = code.dynamic_start + u64::from(launch.request.dynamic_shared);
        let shared = Buffer::new(SHARED_BASE, len, "shared memory".into());
        let warps = launch.threads.div_ceil(32);
        let warps = (0..warps).map(|index| {
            let mut lanes = Lanes::new(code.rows, code.preds, launch.settings.approx);
            launch.fill_constants(&mut lanes, index, 0, true);
            let left = launch.threads - index * 32;
            Warp {
                index,
                lanes,
                alive: 0,
                members: if left >= 32 {
                    u32::MAX
                } else {
                    (1 << left) - 1
                },
                pcs: [0; 32],
                at_barrier: 0,
                barrier: [0; 32],
                at_warp_op: 0,
                cluster_arrived: 0,
                at_cluster: 0,
                cluster_open: 0,
                arrivals: [0; 32],
                opened: None,
                met: None,
                at_mbarrier: 0,
                landed: race::Landed::default(),
                brought: race::Landed::default(),
                steps: 0,
                fenced: 0,
                acquired: 0,
                syncs: Vec::new(),
                local: Buffer::new(
                    0,
                    code.local_bytes.next_multiple_of(16) * 32,
                    "local memory".into(),
                ),
            }
        });
        Block {
            linear: 0,
            warps: warps.collect(),
            shared,
            barrier_clock: 0,
            partial: Vec::new(),
            arrived: [(0, 0); 16],
            floor: 0,
            mbarriers: Vec::new(),
        }
    }

    /// Makes this the block `linear`, before its first instruction.
    pub fn start(&mut self, launch: &Launch, linear: u64) {
        let code = launch.code;
        self.linear = linear;
        self.barrier_clock = 0;
        self.partial.clear();
        self.arrived = [(0, 0); 16];
        self.mbarriers.clear();
        self.floor = race::stamp(race::tick(), 0, 0, false);
        if self.shared.len > SHARED_START {
            self.shared.set_state(0, self.shared.len, FORBIDDEN);
            for (_, offset, size) in &code.shared {
                self.shared.set_state(*offset, *size, NEVER_WRITTEN);
            }
            self.shared.set_state(
                code.dynamic_start,
                u64::from(launch.request.dynamic_shared),
                NEVER_WRITTEN,
            );
        }
        for w in &mut self.warps {
            w.alive = w.members;
            w.pcs = [0; 32];
            w.at_barrier = 0;
            w.at_warp_op = 0;
            w.cluster_arrived = 0;
            w.at_cluster = 0;
            w.cluster_open = 0;
            w.opened = None;
            w.met = None;
            w.at_mbarrier = 0;
            w.landed.clear();
            w.brought.clear();
            w.steps = 0;
            w.fenced = 0;
            w.acquired = 0;
            w.syncs.clear();
            w.lanes.written.fill(0);
            if code.local_bytes > 0 {
                w.local.set_state(0, w.local.len, NEVER_WRITTEN);
            }
            for &(slot, _) in &code.constants {
                w.lanes.written[slot.row as usize] = u32::MAX;
            }
            launch.fill_constants(&mut w.lanes, w.index, linear, false);
        }
    }

    pub fn is_done(&self) -> bool {
        self.warps.iter().all(|w| w.alive == 0)
    }
}
