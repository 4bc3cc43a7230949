//! Data races: two threads touch a byte, at least one writes, and nothing orders them.
//!
//! Every granule of memory remembers its last writer and its last readers as *stamps*. A stamp
//! holds the time of the access in a clock that ticks at every synchronisation, so that "before the
//! last barrier" is a comparison. The clock never goes back, over all launches of the process: a
//! stamp from before this launch is older than its start, and nothing is ever reset.
//!
//! Granules are 4 bytes, and become 2 or 1 when a buffer is first accessed in such parts.
//!
//! Reads through the non-coherent path are no matter of order: the launch may not write the same bytes.
//!
//! An asynchronous store belongs to no thread: its stamp names the mbarrier that it completes bytes of, and
//! only a wait for that phase orders it.
//!
//! Limits: one writer and one group of readers are remembered, so a race can be missed in one
//! schedule and found in another; an atomic after a fence publishes what came before it to every later
//! atomic, whatever their addresses; what one lane knows from an mbarrier, its warp knows.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use crate::memory::zeroed;

/// The clock of the process.
static CLOCK: AtomicU64 = AtomicU64::new(1);

const THREAD_BITS: u32 = 11;
const BLOCK_BITS: u32 = 18;
const CLOCK_SHIFT: u32 = 1 + THREAD_BITS + BLOCK_BITS;
const ATOMIC: u64 = 1;
/// Pseudo-threads: several threads of one block, or of several blocks.
const MANY_OF_BLOCK: u64 = (1 << THREAD_BITS) - 1;
const MANY: u64 = (1 << THREAD_BITS) - 2;
/// Pseudo-thread: an asynchronous store; the block is a [`channel`].
const ASYNCHRONOUS: u64 = (1 << THREAD_BITS) - 3;

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

/// What stands for block in the stamps of the asynchronous stores that complete bytes of an mbarrier: the
/// `n`-th of the launch. Far from the numbers of blocks, unless there are very many.
pub(crate) fn channel(n: u64) -> u64 {
    (1 << BLOCK_BITS) - 2 - n % (1 << (BLOCK_BITS - 1))
}

/// The stamp of an asynchronous store that arrives now.
pub(crate) fn asynchronous(channel: u64) -> u64 {
    stamp(now(), channel, ASYNCHRONOUS as u32, false)
}

/// Whether a stamp is that of an asynchronous store.
pub(crate) fn is_asynchronous(s: u64) -> bool {
    s >> 1 & ((1 << THREAD_BITS) - 1) == ASYNCHRONOUS
}

fn clock_of(s: u64) -> u64 {
    s >> CLOCK_SHIFT
}

/// Block (its low bits) and thread of a stamp; no thread if it stands for several.
pub(crate) fn who(s: u64) -> (u64, Option<u32>) {
    let t = s >> 1 & ((1 << THREAD_BITS) - 1);
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

/// What orders the accesses of a warp after earlier ones.
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
    /// What blocks have published.
    pub released: &'a HashMap<u64, Vec<Release>>,
    /// Clock of the last atomic of this warp, or of another before a barrier of both.
    pub acquired: u64,
    /// Compare-and-swap loops read plainly first: reads do not race with atomics.
    pub lenient: bool,
    /// The cluster's barrier, as far as this warp has waited for it.
    pub met: Option<&'a Meeting>,
    /// What this warp knows of mbarriers.
    pub landed: &'a Landed,
}

/// A phase of the barrier of a cluster that is complete: what each thread did before it arrived is known to
/// whoever has waited.
pub(crate) struct Meeting {
    /// When it opened.
    pub clock: u64,
    /// Number of the cluster's first block.
    pub first: u64,
    /// Threads of a block.
    pub threads: usize,
    /// When each thread arrived, block after block.
    pub arrivals: Vec<u64>,
    /// What they knew of mbarriers then.
    pub landed: Landed,
}

/// Phases of mbarriers that are known to be complete: channel, and clock of the last completion.
#[derive(Clone, Default)]
pub(crate) struct Landed(Vec<(u64, u64)>);

impl Landed {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Takes in what others know.
    pub fn learn(&mut self, other: &Landed) {
        for &(channel, clock) in &other.0 {
            self.complete(channel, clock);
        }
    }

    pub fn complete(&mut self, channel: u64, clock: u64) {
        match self.0.iter_mut().find(|(c, _)| *c == channel) {
            Some((_, last)) => *last = clock.max(*last),
            None => self.0.push((channel, clock)),
        }
    }

    fn since(&self, channel: u64, at: u64) -> bool {
        self.0.iter().any(|&(c, clock)| c == channel && clock > at)
    }
}

impl Meeting {
    /// Whether a thread of a block (nothing: several threads) did something before it arrived.
    fn covers(&self, at: u64, block: u64, thread: Option<u32>) -> bool {
        let rank = block.wrapping_sub(stamp(0, self.first, 0, false) >> (1 + THREAD_BITS)) as usize;
        let mut blocks = self.arrivals.chunks(self.threads);
        match (blocks.nth(rank), thread) {
            (Some(arrivals), Some(thread)) => arrivals
                .get(thread as usize)
                .is_some_and(|&clock| clock > at),
            (Some(arrivals), None) => arrivals.iter().all(|&clock| clock > at),
            // Readers in several blocks: believed to be those of this cluster.
            (None, None) => self.arrivals.iter().all(|&clock| clock > at),
            (None, Some(_)) => false,
        }
    }
}

/// An atomic after a fence: whoever sees it sees what its warp did before, and what the other warps of the
/// block did before their last barrier with it.
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

    #[cold]
    fn ordered_slowly(&self, prev: u64, me: u64) -> bool {
        let at = clock_of(prev);
        let (block, thread) = who(prev);
        if is_asynchronous(prev) {
            return self.landed.since(block, at);
        }
        if self.met.is_some_and(|met| met.covers(at, block, thread)) {
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
        if thread.is_none() && prev >> 1 & ((1 << THREAD_BITS) - 1) == MANY {
            // Readers in several blocks: believed ordered once this block has acquired anything.
            return self.acquired > at && !self.released.is_empty();
        }
        self.released.get(&block).is_some_and(|releases| {
            let mut seen = releases.iter().filter(|r| r.clock < self.acquired);
            seen.any(|r| r.covers(at, thread))
        })
    }
}

/// Last writers and readers of a buffer.
pub(crate) struct Shadow {
    len: u64,
    /// log2 of the granule in use.
    shift: AtomicU8,
    /// Writer and reader of each granule, for granules of 1, 2 and 4 bytes.
    cells: [OnceLock<Box<[AtomicU64]>>; 3],
    /// Last reader of each byte through the non-coherent path. Few buffers have one.
    non_coherent: OnceLock<Box<[AtomicU64]>>,
}

/// The earlier access of a race: its stamp, and whether it wrote.
pub(crate) struct Conflict {
    pub previous: u64,
    pub wrote: bool,
    /// Whether one of the two reads through the non-coherent path, which no order makes right.
    pub non_coherent: bool,
}

impl Shadow {
    pub fn new(len: u64) -> Self {
        Shadow {
            len,
            shift: AtomicU8::new(2),
            cells: [const { OnceLock::new() }; 3],
            non_coherent: OnceLock::new(),
        }
    }

    /// The cells of the range, writer and reader by turns.
    #[inline(always)]
    fn range(&self, offset: u64, size: u64) -> &[AtomicU64] {
        let mut shift = self.shift.load(Relaxed);
        if size < 4 && 1 << shift > size {
            shift = if size == 2 { 1 } else { 0 };
            self.shift.fetch_min(shift, Relaxed);
        }
        let cells = match self.cells[shift as usize].get() {
            Some(c) => c,
            None => self.grow(shift),
        };
        let first = (offset >> shift) as usize;
        let count = (size >> shift).max(1) as usize;
        &cells[2 * first..2 * (first + count)]
    }

    #[cold]
    fn grow(&self, shift: u8) -> &[AtomicU64] {
        self.cells[shift as usize].get_or_init(|| zeroed(2 * (self.len >> shift) as usize + 2))
    }

    /// Records a read.
    #[inline(always)]
    pub fn read(&self, offset: u64, size: u64, me: u64, order: &Order) -> Result<(), Conflict> {
        for cell in self.range(offset, size).chunks_exact(2) {
            let writer = cell[0].load(Relaxed);
            if writer >= order.floor && !order.ordered(writer, me) {
                let tolerated = writer & ATOMIC != 0 && (me & ATOMIC != 0 || order.lenient);
                if !tolerated {
                    return Err(Conflict {
                        previous: writer,
                        wrote: true,
                        non_coherent: false,
                    });
                }
            }
            let reader = cell[1].load(Relaxed);
            if reader != me {
                cell[1].store(merge(reader, me, order), Relaxed);
            }
        }
        Ok(())
    }

    /// Records a read through the non-coherent path: nobody may write these bytes in this launch, not
    /// even this thread before or after.
    pub fn read_non_coherent(
        &self,
        offset: u64,
        size: u64,
        me: u64,
        floor: u64,
    ) -> Result<(), Conflict> {
        // Accesses that used a granule were at least as large, so its writer wrote all of it.
        for (shift, cells) in self.cells.iter().enumerate() {
            let Some(cells) = cells.get() else { continue };
            for granule in offset >> shift..=(offset + size - 1) >> shift {
                let writer = cells[2 * granule as usize].load(Relaxed);
                if writer >= floor {
                    return Err(Conflict {
                        previous: writer,
                        wrote: true,
                        non_coherent: true,
                    });
                }
            }
        }
        let readers = self.non_coherent.get_or_init(|| zeroed(self.len as usize));
        for reader in &readers[offset as usize..(offset + size) as usize] {
            reader.store(me, Relaxed);
        }
        Ok(())
    }

    #[cold]
    fn non_coherent_reader(&self, offset: u64, size: u64, floor: u64) -> Option<u64> {
        let readers = &self.non_coherent.get()?[offset as usize..(offset + size) as usize];
        readers
            .iter()
            .map(|r| r.load(Relaxed))
            .find(|&r| r >= floor)
    }

    /// Records a write, or an atomic, according to the stamp.
    #[inline(always)]
    pub fn write(&self, offset: u64, size: u64, me: u64, order: &Order) -> Result<(), Conflict> {
        if self.non_coherent.get().is_some()
            && let Some(previous) = self.non_coherent_reader(offset, size, order.floor)
        {
            return Err(Conflict {
                previous,
                wrote: false,
                non_coherent: true,
            });
        }
        for cell in self.range(offset, size).chunks_exact(2) {
            let writer = cell[0].load(Relaxed);
            if writer >= order.floor && writer & me & ATOMIC == 0 && !order.ordered(writer, me) {
                return Err(Conflict {
                    previous: writer,
                    wrote: true,
                    non_coherent: false,
                });
            }
            let reader = cell[1].load(Relaxed);
            if reader >= order.floor {
                let tolerated = me & ATOMIC != 0 && (reader & ATOMIC != 0 || order.lenient);
                if !tolerated && !order.ordered(reader, me) {
                    return Err(Conflict {
                        previous: reader,
                        wrote: false,
                        non_coherent: false,
                    });
                }
            }
            cell[0].store(me, Relaxed);
        }
        Ok(())
    }
}

impl Shadow {
    /// Records an asynchronous store by its stamp `me`, which `issuer` started at the time `issued`.
    pub fn write_asynchronously(
        &self,
        offset: u64,
        size: u64,
        me: u64,
        (issuer, issued): (u64, u64),
        order: &Order,
    ) -> Result<(), Conflict> {
        for cell in self.range(offset, size).chunks_exact(2) {
            for (previous, wrote) in [(&cell[0], true), (&cell[1], false)] {
                let previous = previous.load(Relaxed);
                if !order.ordered_before_issue(previous, issuer, issued) {
                    return Err(Conflict {
                        previous,
                        wrote,
                        non_coherent: false,
                    });
                }
            }
            cell[0].store(me, Relaxed);
        }
        Ok(())
    }
}

/// The readers of a granule after one more read.
fn merge(reader: u64, me: u64, order: &Order) -> u64 {
    if reader < order.floor || order.ordered(reader, me) {
        return me;
    }
    // Two readers at once: remember only how far apart they are, and whether all were atomic.
    let (block, _) = who(me);
    let many_grid = reader >> 1 & ((1 << THREAD_BITS) - 1) == MANY;
    let thread = if same_block(reader, me) && !many_grid {
        MANY_OF_BLOCK
    } else {
        MANY
    };
    let block = if thread == MANY {
        (1 << BLOCK_BITS) - 1
    } else {
        block
    };
    stamp(
        clock_of(me).max(clock_of(reader)),
        block,
        thread as u32,
        reader & me & ATOMIC != 0,
    )
}
