//! The blocks of one launch on several threads.
//!
//! Workers take clusters from one counter, so in the order of the schedule. Each worker has its own [`Launch`]. They share
//! the memory of the device, which consists of atomics, and its race check (see [`crate::shadow`]).
//! A finding ends its worker, and no cluster after that of the first finding is begun. Those before it have
//! been taken already and run to their end or to a finding of their own, and the first in the order is the one that
//! counts: the one that a single thread would have found, unless it is a race with a later cluster.
//!
//! Each thread gets a core of its own: [`RUNNING`] counts the threads of the process that run launches, so that a test runner
//! with a thread per core does not get more threads.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use super::Launch;
use super::totals::Totals;
use crate::report::Finding;
use crate::settings::Schedule;

/// The time after which a launch gets more threads. A new thread starts after 20 to 40 µs, half of which its parent spends.
const ALONE: Duration = Duration::from_micros(500);

/// Threads that run launches.
static RUNNING: AtomicUsize = AtomicUsize::new(0);

static CORES: LazyLock<usize> =
    LazyLock::new(|| thread::available_parallelism().map_or(1, NonZeroUsize::get));

/// A core in use, until it is dropped.
pub(super) struct Core;

impl Core {
    /// One more than there are, if need be.
    pub fn take() -> Core {
        RUNNING.fetch_add(1, Relaxed);
        Core
    }

    fn idle() -> Option<Core> {
        let more = |n| (n < *CORES).then_some(n + 1);
        RUNNING
            .fetch_update(Relaxed, Relaxed, more)
            .ok()
            .map(|_| Core)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Relaxed);
    }
}

/// The clusters of a launch, in the order of the schedule.
struct Clusters {
    total: u64,
    next: AtomicU64,
    /// The first that had a finding.
    found: AtomicU64,
}

/// The result of a worker: its counts, and the finding that ended it with the index of the cluster in the schedule.
type Work = (Totals, Option<(u64, Finding)>);

impl Clusters {
    /// Runs clusters until there are no more. `before` is called before each.
    fn work(&self, mut launch: Launch, mut before: impl FnMut(&mut Launch)) -> Work {
        let reversed = launch.settings.schedule == Schedule::Reversed;
        let mut cluster = launch.cluster();
        loop {
            before(&mut launch);
            let at = self.next.fetch_add(1, Relaxed);
            if at >= self.total.min(self.found.load(Relaxed)) {
                return (launch.totals, None);
            }
            let number = if reversed { self.total - 1 - at } else { at };
            launch.start(&mut cluster, number);
            if let Err(finding) = launch.alone(&mut cluster, reversed) {
                self.found.fetch_min(at, Relaxed);
                return (launch.totals, Some((at, finding)));
            }
        }
    }

    /// Those that nobody has taken.
    fn left(&self) -> u64 {
        self.total.saturating_sub(self.next.load(Relaxed))
    }
}

/// Runs a launch of which every worker gets its own state, by `new`.
pub(super) fn run<'a>(new: impl Fn() -> Launch<'a> + Sync) -> (Totals, Option<Finding>) {
    let launch = new();
    let wanted = launch.settings.workers;
    let clusters = Clusters {
        total: launch.clusters(),
        next: AtomicU64::new(0),
        found: AtomicU64::new(u64::MAX),
    };
    let (clusters, new) = (&clusters, &new);
    thread::scope(|scope| {
        let begin = Instant::now();
        let mut helpers = Vec::new();
        let (mut totals, mut first) = clusters.work(launch, |launch| {
            // One is for this thread.
            while launch.code.independent && clusters.left() > 1 + helpers.len() as u64 {
                let core = match wanted {
                    Some(n) => (helpers.len() + 1 < n.get()).then(Core::take),
                    None if begin.elapsed() < ALONE => None,
                    None => Core::idle(),
                };
                let Some(core) = core else { break };
                // Marks that were made without regard to others come before the helper's first.
                launch.concurrent = true;
                let help = move || {
                    let _core = core;
                    let mut launch = new();
                    launch.concurrent = true;
                    clusters.work(launch, |_| ())
                };
                match Builder::new().spawn_scoped(scope, help) {
                    Ok(helper) => helpers.push(helper),
                    Err(_) => break,
                }
            }
        });
        for helper in helpers {
            let (counts, finding) = helper.join().unwrap_or_else(|panic| resume_unwind(panic));
            totals.join(counts);
            let earlier = |(at, _): &(u64, Finding)| first.as_ref().is_none_or(|(f, _)| at < f);
            first = finding.filter(earlier).or(first);
        }
        (totals, first.map(|(_, finding)| finding))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use super::*;
    use crate::exec::Request;
    use crate::settings::Settings;
    use crate::{lower, ptx};

    /// Runs a kernel of so many blocks and asks for three workers; gives how many there were. Those after the first
    /// panic, if they shall.
    fn workers(body: &str, blocks: u32, panic: bool) -> usize {
        let text =
            format!(".version 7.0 .target sm_80 .address_size 64 .visible .entry k() {{ {body} }}");
        let module = ptx::parse(&text).expect("it is PTX");
        let code = lower::lower(&module, &module.entries[0]).expect("all is known");
        let request = Request {
            names: Arc::new(vec!["ret".into(); code.insts.len() - 1]),
            code: Arc::new(code),
            files: Arc::new(HashMap::new()),
            variables: Arc::new(Vec::new()),
            device: 0,
            grid: (blocks, 1, 1),
            block: (1, 1, 1),
            cluster: 1,
            dynamic_shared: 0,
            params: Vec::new(),
        };
        let settings = Settings {
            workers: NonZeroUsize::new(3),
            ..Settings::default()
        };
        let count = AtomicUsize::new(0);
        let (totals, finding) = run(|| {
            let earlier = count.fetch_add(1, Relaxed);
            assert!(!panic || earlier == 0, "planted");
            Launch::new(&request, settings, true, 0)
        });
        assert_eq!(finding, None);
        assert_eq!(totals.counts[0], u64::from(blocks));
        count.into_inner()
    }

    #[test]
    fn only_blocks_that_cannot_wait_for_each_other_run_at_once() {
        assert!((2..=3).contains(&workers("ret;", 100, false)));
        assert_eq!(workers("ret;", 2, false), 2);
        assert_eq!(workers("ret;", 1, false), 1);
        assert_eq!(workers("membar.gl; ret;", 100, false), 1);
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let panics = |body| catch_unwind(AssertUnwindSafe(|| workers(body, 100, true))).is_err();
        assert!(panics("ret;") && !panics("membar.gl; ret;"));
    }
}
