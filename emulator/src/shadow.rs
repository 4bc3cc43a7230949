//! The accesses that memory remembers: writes, reads, and reads through the non-coherent path.
//!
//! Marks are kept by granules of the size of the access, up to 16 bytes: a 16-byte store leaves one. An access marks
//! its own granules, then looks at those of every size that has been used, so that a scalar tail that laps over
//! a vector is seen whatever came first. Of each granule the last writer is known, the readers that nothing orders
//! (one of them, or only how far apart they are), and the first non-coherent reader of the launch. Reads on that path are
//! wrong in any order: the launch must not write the same bytes.
//!
//! # Blocks on several threads
//! [`crate::exec`] runs blocks at once only if nothing can order them, so that two accesses of theirs, one a write,
//! are always a race. At least one of the two finds it. Each marks (m), then looks (l); marks are replaced in one
//! atomic step, and all of this is sequentially consistent, in one order of everything. If l1 comes before m2,
//! then l2 comes after m1: one of the looks comes after the other's mark. It finds that mark, or a mark that has replaced it.
//! A replaced mark hides no race: the marks of later readers record that there are readers in other clusters
//! (`Order::readers`). A writer that replaces the mark of a reader in another cluster reports a race itself, or replaces it
//! by a mark of the same other cluster. For two writes of one size the marking itself looks, because it returns the replaced
//! mark. The bit that says that a size is in use is set before the first mark of that size.

use std::sync::OnceLock;
use std::sync::atomic::{
    AtomicU8, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use crate::memory::zeroed;
use crate::race::{Order, is_atomic};

/// Granules of 1, 2, 4, 8 and 16 bytes.
const SIZES: usize = 5;

/// A stamp per granule, for each size of granule.
struct Marks {
    /// Length of the memory.
    len: u64,
    /// Bit per size that is in use, by its log2.
    sizes: AtomicU8,
    granules: [OnceLock<Box<[AtomicU64]>>; SIZES],
}

impl Marks {
    fn new(len: u64) -> Self {
        Marks {
            len,
            sizes: AtomicU8::new(0),
            granules: [const { OnceLock::new() }; SIZES],
        }
    }

    #[inline(always)]
    fn granules(&self, log: u32) -> &[AtomicU64] {
        self.granules[log as usize].get_or_init(|| zeroed((self.len >> log) as usize + 1))
    }

    /// Marks an access by `stamp`, a function of the mark that is replaced, and gives the first of those that is
    /// one of a kind. With nobody else about a load and a store will do.
    #[inline(always)]
    fn replace(
        &self,
        offset: u64,
        size: u64,
        concurrent: bool,
        stamp: impl Fn(u64) -> u64,
        is: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        let log = size.trailing_zeros().min(SIZES as u32 - 1);
        if self.sizes.load(SeqCst) & 1 << log == 0 {
            self.sizes.fetch_or(1 << log, SeqCst);
        }
        let range = (offset >> log) as usize..((offset + size) >> log) as usize;
        for granule in &self.granules(log)[range] {
            let mut old = granule.load(SeqCst);
            loop {
                let new = stamp(old);
                if new == old {
                    break;
                }
                if !concurrent {
                    granule.store(new, Relaxed);
                    break;
                }
                match granule.compare_exchange_weak(old, new, SeqCst, SeqCst) {
                    Ok(_) => break,
                    Err(now) => old = now,
                }
            }
            if is(old) {
                return Some(old);
            }
        }
        None
    }

    /// The first mark on the bytes of an access that is one of a kind.
    #[inline(always)]
    fn find(&self, offset: u64, size: u64, is: impl Fn(u64) -> bool) -> Option<u64> {
        let mut sizes = self.sizes.load(SeqCst);
        while sizes != 0 {
            let log = sizes.trailing_zeros();
            sizes &= sizes - 1;
            let range = (offset >> log) as usize..=((offset + size - 1) >> log) as usize;
            for granule in &self.granules(log)[range] {
                let stamp = granule.load(SeqCst);
                if is(stamp) {
                    return Some(stamp);
                }
            }
        }
        None
    }
}

/// The accesses to a buffer.
pub(crate) struct Shadow {
    writers: Marks,
    readers: Marks,
    non_coherent: Marks,
}

/// The earlier access of a race: its stamp, and whether it wrote.
pub(crate) struct Conflict {
    pub previous: u64,
    pub wrote: bool,
    /// Whether one of the two reads through the non-coherent path, which no order makes right.
    pub non_coherent: bool,
}

impl Conflict {
    /// An error if there is an earlier access.
    fn check(previous: Option<u64>, wrote: bool, non_coherent: bool) -> Result<(), Conflict> {
        match previous {
            None => Ok(()),
            Some(previous) => Err(Conflict {
                previous,
                wrote,
                non_coherent,
            }),
        }
    }
}

impl Shadow {
    pub fn new(len: u64) -> Self {
        Shadow {
            writers: Marks::new(len),
            readers: Marks::new(len),
            non_coherent: Marks::new(len),
        }
    }

    /// Records a read.
    #[inline(always)]
    pub fn read(&self, offset: u64, size: u64, me: u64, order: &Order) -> Result<(), Conflict> {
        let join = |old| order.readers(old, me);
        (self.readers).replace(offset, size, order.concurrent, join, |_| false);
        let writer = self.writers.find(offset, size, |writer| {
            order.races(writer, me) && !(order.lenient && is_atomic(writer))
        });
        Conflict::check(writer, true, false)
    }

    /// Records a read through the non-coherent path. No thread may write these bytes in this launch, not even the reading thread.
    #[inline(always)]
    pub fn read_non_coherent(
        &self,
        offset: u64,
        size: u64,
        me: u64,
        order: &Order,
    ) -> Result<(), Conflict> {
        let first = |old| if old < order.floor { me } else { old };
        (self.non_coherent).replace(offset, size, order.concurrent, first, |_| false);
        let writer = self.writers.find(offset, size, |w| w >= order.floor);
        Conflict::check(writer, true, true)
    }

    /// Records a write, or an atomic, according to the stamp.
    #[inline(always)]
    pub fn write(&self, offset: u64, size: u64, me: u64, order: &Order) -> Result<(), Conflict> {
        let races = |writer| order.races(writer, me);
        let writer = (self.writers)
            .replace(offset, size, order.concurrent, |_| me, races)
            .or_else(|| self.writers.find(offset, size, races));
        Conflict::check(writer, true, false)?;
        let reader = self.readers.find(offset, size, |reader| {
            order.races(reader, me) && !(order.lenient && is_atomic(me))
        });
        Conflict::check(reader, false, false)?;
        let reader = (self.non_coherent).find(offset, size, |r| r >= order.floor);
        Conflict::check(reader, false, true)
    }

    /// Records an asynchronous store by its stamp `me`, which `issuer` started at the time `issued`.
    pub fn write_asynchronously(
        &self,
        offset: u64,
        size: u64,
        me: u64,
        (issuer, issued): (u64, u64),
        order: &Order,
    ) -> Result<(), Conflict> {
        let races = |writer| !order.ordered_before_issue(writer, issuer, issued);
        Conflict::check(self.writers.find(offset, size, races), true, false)?;
        let races = |reader| !order.read_before_issue(reader, issuer, issued);
        Conflict::check(self.readers.find(offset, size, races), false, false)?;
        (self.writers).replace(offset, size, order.concurrent, |_| me, |_| false);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::thread;

    use super::*;
    use crate::race::{self, Landed};

    /// Each is made by both threads, side by side: nothing may pass unseen.
    const TRIALS: usize = 100_000;

    /// What a thread does with bytes 16·i on.
    type Accesses = fn(&Shadow, u64, u64, &Order) -> Result<(), Conflict>;

    fn read<const SIZE: u64>(s: &Shadow, at: u64, me: u64, order: &Order) -> Result<(), Conflict> {
        s.read(at, SIZE, me, order)
    }

    fn write<const SIZE: u64>(s: &Shadow, at: u64, me: u64, order: &Order) -> Result<(), Conflict> {
        s.write(at, SIZE, me, order)
    }

    fn non_coherent(s: &Shadow, at: u64, me: u64, order: &Order) -> Result<(), Conflict> {
        s.read_non_coherent(at, 16, me, order)
    }

    fn read_and_write(s: &Shadow, at: u64, me: u64, order: &Order) -> Result<(), Conflict> {
        s.read(at, 4, me, order)?;
        s.write(at, 4, me, order)
    }

    /// Two blocks at once; gives the trials that neither reported.
    fn unseen(accesses: [Accesses; 2]) -> usize {
        let shadow = Shadow::new(16 * TRIALS as u64);
        let at_trial = [AtomicUsize::new(0), AtomicUsize::new(0)];
        let floor = race::stamp(race::tick(), 0, 0, false);
        let (shadow, at_trial) = (&shadow, &at_trial);
        let work = |block: usize| {
            move || {
                let (released, landed) = (HashMap::new(), Landed::default());
                let order = Order {
                    floor,
                    barrier: 0,
                    partial: &[],
                    warp_syncs: &[],
                    warp: 0,
                    released: &released,
                    acquired: 0,
                    lenient: false,
                    met: None,
                    landed: &landed,
                    cluster: 1,
                    concurrent: true,
                };
                let me = race::stamp(race::now(), block as u64, 0, false);
                let mut reported = Vec::with_capacity(TRIALS);
                for i in 0..TRIALS {
                    at_trial[block].store(i, SeqCst);
                    let mut spins = 0;
                    while at_trial[1 - block].load(SeqCst) < i {
                        spins += 1;
                        if spins % 1000 == 0 {
                            thread::yield_now();
                        }
                    }
                    reported.push(accesses[block](shadow, 16 * i as u64, me, &order).is_err());
                }
                at_trial[block].store(TRIALS, SeqCst);
                reported
            }
        };
        let [a, b] = thread::scope(|scope| {
            [scope.spawn(work(0)), scope.spawn(work(1))].map(|t| t.join().expect("no panic"))
        });
        a.iter().zip(&b).filter(|&(&a, &b)| !a && !b).count()
    }

    #[test]
    fn of_two_workers_one_sees_the_race() {
        let pairs: [[Accesses; 2]; 7] = [
            [write::<4>, write::<4>],
            [write::<4>, read::<4>],
            [write::<16>, write::<2>],
            [write::<16>, read::<1>],
            [write::<1>, read::<16>],
            [write::<4>, non_coherent],
            [read::<4>, read_and_write],
        ];
        for (i, pair) in pairs.into_iter().enumerate() {
            assert_eq!(unseen(pair), 0, "pair {i}");
        }
        assert_eq!(unseen([read::<4>, read::<16>]), TRIALS);
    }
}
