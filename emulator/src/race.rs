//! Data races: two threads touch a byte, at least one writes, and nothing orders them.
//!
//! Memory remembers its accesses (see [`crate::shadow`]) as *stamps*. A stamp holds the time of the access in a
//! clock that ticks at every synchronisation, so that "before the last barrier" is a comparison. The clock never
//! goes back, over all launches of the process: a stamp from before this launch is older than its start, and
//! nothing is ever reset.
//!
//! An asynchronous store belongs to no thread: its stamp names the mbarrier that counts its bytes, and only a wait for that
//! phase orders it. It publishes no other writes of its thread. But the thread has completed its earlier reads, so a thread
//! that has waited may overwrite the bytes that were read, by an asynchronous store of its own.
//!
//! Limits: one writer and one group of readers are remembered, so a race can be missed in one
//! schedule and found in another; of several readers at once none is taken to read between its arrival at the barrier
//! of the cluster and the end of its wait; an atomic after a fence publishes what came before it to every later
//! atomic, whatever their addresses; what one lane knows from an mbarrier, its warp knows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The clock of the process.
static CLOCK: AtomicU64 = AtomicU64::new(1);

const THREAD_BITS: u32 = 11;
const BLOCK_BITS: u32 = 18;
const CLOCK_SHIFT: u32 = 1 + THREAD_BITS + BLOCK_BITS;
const ATOMIC: u64 = 1;
/// The block number in the stamps of several clusters.
const NO_BLOCK: u64 = (1 << BLOCK_BITS) - 1;
/// Pseudo-threads: several threads of one block, of several blocks of a cluster (the block is a [`channel`] of
/// the cluster's number), or of several clusters.
const MANY_OF_BLOCK: u64 = (1 << THREAD_BITS) - 1;
const MANY_OF_CLUSTER: u64 = (1 << THREAD_BITS) - 2;
const MANY: u64 = (1 << THREAD_BITS) - 3;
/// Pseudo-thread: an asynchronous store; the block is a [`channel`].
const ASYNCHRONOUS: u64 = (1 << THREAD_BITS) - 4;

/// Advances the clock.
pub(crate) fn tick() -> u64 {
    CLOCK.fetch_add(1, Relaxed) + 1
}

/// The time.
pub(crate) fn now() -> u64 {
    CLOCK.load(Relaxed)
}

/// Whether a stamp is that of an atomic.
pub(crate) fn is_atomic(s: u64) -> bool {
    s & ATOMIC != 0
}

/// A point in time and a thread.
pub(crate) fn stamp(clock: u64, block: u64, thread: u32, atomic: bool) -> u64 {
    let block = block & ((1 << BLOCK_BITS) - 1);
    clock << CLOCK_SHIFT | block << (1 + THREAD_BITS) | u64::from(thread) << 1 | u64::from(atomic)
}

/// The block number in stamps that belong to no single block: of asynchronous stores that complete bytes of an mbarrier (the
/// `n`-th that the worker has initialised), and of readers in several blocks of the cluster `n`. It differs from real block
/// numbers, unless there are very many blocks.
pub(crate) fn channel(n: u64) -> u64 {
    (1 << BLOCK_BITS) - 2 - n % (1 << (BLOCK_BITS - 1))
}

/// The stamp of an asynchronous store that arrives now.
pub(crate) fn asynchronous(channel: u64) -> u64 {
    stamp(now(), channel, ASYNCHRONOUS as u32, false)
}

/// Whether a stamp is that of an asynchronous store.
pub(crate) fn is_asynchronous(s: u64) -> bool {
    thread_of(s) == ASYNCHRONOUS
}

/// The thread or pseudo-thread of a stamp.
fn thread_of(s: u64) -> u64 {
    s >> 1 & ((1 << THREAD_BITS) - 1)
}

fn clock_of(s: u64) -> u64 {
    s >> CLOCK_SHIFT
}

/// Block (its low bits) and thread of a stamp; no thread if it stands for several.
pub(crate) fn who(s: u64) -> (u64, Option<u32>) {
    let t = thread_of(s);
    (
        s >> (1 + THREAD_BITS) & ((1 << BLOCK_BITS) - 1),
        (t < ASYNCHRONOUS).then_some(t as u32),
    )
}

/// The same block and thread.
fn same(a: u64, b: u64) -> bool {
    (a ^ b) & ((1 << CLOCK_SHIFT) - 2) == 0
}

fn same_block(a: u64, b: u64) -> bool {
    (a ^ b) >> (1 + THREAD_BITS) & ((1 << BLOCK_BITS) - 1) == 0
}

/// The synchronisation that orders the accesses of a warp after earlier ones.
pub(crate) struct Order<'a> {
    /// Stamps below this are older than the launch (or, of shared memory, than the block).
    pub floor: u64,
    /// Clock of the last barrier of all threads of the block.
    pub barrier: u64,
    /// Barriers of some warps since then: clock, bit per warp.
    pub partial: &'a [(u64, u32)],
    /// `bar.warp.sync`s of this warp: clock and lanes.
    pub warp_syncs: &'a [(u64, u32)],
    pub warp: u32,
    /// The published work of blocks.
    pub released: &'a HashMap<u64, Vec<Release>>,
    /// Clock of the last atomic of this warp, or of another before a barrier of both.
    pub acquired: u64,
    /// Compare-and-swap loops read plainly first: reads do not race with atomics.
    pub lenient: bool,
    /// The cluster's barrier, as far as this warp has waited for it.
    pub met: Option<&'a Meeting>,
    /// The mbarrier phases that this warp has waited for.
    pub landed: &'a Landed,
    /// Blocks of a cluster.
    pub cluster: u64,
    /// Whether other threads of the host run blocks of the launch, so that no mark may be lost.
    pub concurrent: bool,
}

/// A completed phase of a cluster barrier. The work of each thread before its arrival is ordered before the work of threads
/// that have waited.
pub(crate) struct Meeting {
    /// The time at which the barrier opened.
    pub clock: u64,
    /// Number of the cluster's first block.
    pub first: u64,
    /// Threads of a block.
    pub threads: usize,
    /// The time at which each thread arrived, block after block.
    pub arrivals: Vec<u64>,
    /// What they knew of mbarriers then.
    pub landed: Landed,
}

/// What a warp may know from mbarriers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// That a phase of the mbarrier of this [`channel`] is complete.
    Phase(u64),
    /// What a thread had read before it sent an asynchronous store: its stamp at no time.
    Sender(u64),
}

/// The last time of each.
#[derive(Clone, Default)]
pub(crate) struct Landed(Vec<(Known, u64)>);

impl Landed {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Merges the knowledge of others.
    pub fn learn(&mut self, other: &Landed) {
        for &(known, clock) in &other.0 {
            self.note(known, clock);
        }
    }

    pub fn note(&mut self, known: Known, clock: u64) {
        match self.0.iter_mut().find(|(k, _)| *k == known) {
            Some((_, last)) => *last = clock.max(*last),
            None => self.0.push((known, clock)),
        }
    }

    fn since(&self, known: Known, at: u64) -> bool {
        self.0.iter().any(|&(k, clock)| k == known && clock > at)
    }
}

impl Meeting {
    /// Whether whoever made a stamp did so before arriving.
    fn covers(&self, prev: u64) -> bool {
        let ((block, thread), at) = (who(prev), clock_of(prev));
        let (first, _) = who(stamp(0, self.first, 0, false));
        let size = (self.arrivals.len() / self.threads) as u64;
        let rank = block.wrapping_sub(first);
        match thread {
            Some(thread) if rank < size => {
                let arrival = self
                    .arrivals
                    .get(rank as usize * self.threads + thread as usize);
                arrival.is_some_and(|&clock| clock > at)
            }
            Some(_) => false,
            // Of several readers only the last time is known, which may be after others of them arrived.
            None => {
                let here = match thread_of(prev) {
                    MANY_OF_BLOCK => rank < size,
                    MANY_OF_CLUSTER => block == channel(first / size),
                    _ => false,
                };
                here && self.clock > at
            }
        }
    }
}

/// An atomic after a fence. It orders the earlier work of its warp, and the work of the other warps of the block before their
/// last common barrier, before the work of threads that see the atomic.
pub(crate) struct Release {
    pub clock: u64,
    pub warp: u32,
    /// As in [`Order`], at that time.
    pub barrier: u64,
    pub partial: Vec<(u64, u32)>,
}

impl Release {
    /// Whether it publishes what a thread (nothing: several threads of the block) did at a time.
    fn covers(&self, at: u64, thread: Option<u32>) -> bool {
        if self.barrier > at {
            return true;
        }
        let Some(thread) = thread else { return false };
        let both = 1u32 << (thread / 32) | 1 << self.warp;
        let mut partial = self.partial.iter();
        thread / 32 == self.warp && self.clock > at
            || partial.any(|&(c, warps)| c > at && warps & both == both)
    }
}

impl Order<'_> {
    /// Whether the access `prev` happened before the one that `me` is about to make.
    #[inline(always)]
    fn ordered(&self, prev: u64, me: u64) -> bool {
        prev < self.floor
            || same(prev, me)
            || (same_block(prev, me) && clock_of(prev) < self.barrier)
            || self.ordered_slowly(prev, me)
    }

    /// Whether `prev` happened before what `me` started at the time `issued` and did not wait for.
    pub fn ordered_before_issue(&self, prev: u64, me: u64, issued: u64) -> bool {
        prev < self.floor || clock_of(prev) < issued && self.ordered(prev, me)
    }

    /// The same of a read `prev`, and an asynchronous store.
    pub fn read_before_issue(&self, prev: u64, me: u64, issued: u64) -> bool {
        let (block, thread) = who(prev);
        let told = |thread| {
            let sender = Known::Sender(stamp(0, block, thread, false));
            self.landed.since(sender, clock_of(prev))
        };
        self.ordered_before_issue(prev, me, issued) || thread.is_some_and(told)
    }

    #[cold]
    fn ordered_slowly(&self, prev: u64, me: u64) -> bool {
        let at = clock_of(prev);
        let (block, thread) = who(prev);
        if is_asynchronous(prev) {
            return self.landed.since(Known::Phase(block), at);
        }
        if self.met.is_some_and(|met| met.covers(prev)) {
            return true;
        }
        if same_block(prev, me) {
            let Some(thread) = thread else { return false };
            let both = 1u32 << (thread / 32) | 1 << self.warp;
            if self
                .partial
                .iter()
                .any(|&(c, warps)| c > at && warps & both == both)
            {
                return true;
            }
            let (_, Some(mine)) = who(me) else {
                return false;
            };
            let lanes = 1u32 << (thread % 32) | 1 << (mine % 32);
            return thread / 32 == self.warp
                && self
                    .warp_syncs
                    .iter()
                    .any(|&(c, members)| c > at && members & lanes == lanes);
        }
        if matches!(thread_of(prev), MANY | MANY_OF_CLUSTER) {
            // Readers in several blocks: believed ordered once this block has acquired anything.
            return self.acquired > at && !self.released.is_empty();
        }
        self.released.get(&block).is_some_and(|releases| {
            let mut seen = releases.iter().filter(|r| r.clock < self.acquired);
            seen.any(|r| r.covers(at, thread))
        })
    }
    /// Whether nothing orders `me` after `prev`, and one of the two is no atomic: a race, if one of them writes.
    #[inline(always)]
    pub fn races(&self, prev: u64, me: u64) -> bool {
        prev >= self.floor && prev & me & ATOMIC == 0 && !self.ordered(prev, me)
    }

    /// The readers of a granule after one more read: if nothing orders them, only how far apart they are, and
    /// whether all were atomic.
    pub fn readers(&self, old: u64, me: u64) -> u64 {
        if self.ordered(old, me) {
            return me;
        }
        if thread_of(old) == MANY && self.concurrent {
            // Nothing orders the blocks of such a launch, so the time does not matter.
            return old & (me | !ATOMIC);
        }
        let ((of_old, _), (block, _)) = (who(old), who(me));
        let cluster = block / self.cluster;
        let (block, thread) = if thread_of(old) == MANY {
            (NO_BLOCK, MANY)
        } else if of_old == block {
            (block, MANY_OF_BLOCK)
        } else if of_old == channel(cluster) || of_old / self.cluster == cluster {
            (channel(cluster), MANY_OF_CLUSTER)
        } else {
            (NO_BLOCK, MANY)
        };
        let clock = clock_of(me).max(clock_of(old));
        stamp(clock, block, thread as u32, old & me & ATOMIC != 0)
    }
}
