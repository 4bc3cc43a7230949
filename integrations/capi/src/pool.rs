//! The threads of the host functions. A forked process has its parent's memory but none of its threads. A pool therefore
//! stores the id of the process that made it, and another process makes its own.
//!
//! The pools are in a linked list that only grows, because a lock could be left locked by a fork. A process makes one pool
//! for each number of threads that is used.

#![allow(unsafe_code)]

use std::iter;
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuilder};
use xact::Error;

use crate::status::{Failure, Result};
use crate::types::XACT_ERROR_THREADS;

/// The maximum number of threads.
const MAX_THREADS: u64 = 1024;

/// The number of threads to use; 0 is rayon's default.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// The head of the list: the newest pool.
static POOLS: AtomicPtr<Link> = AtomicPtr::new(ptr::null_mut());

struct Link {
    process: u32,
    threads: usize,
    pool: ThreadPool,
    older: *mut Link,
}

pub fn set_num_threads(threads: u64) -> Result<()> {
    if threads > MAX_THREADS {
        return Err(Error::OutOfRange {
            what: "the number of threads",
            got: threads as f64,
            range: "[0, 1024]",
        }
        .into());
    }
    THREADS.store(threads as usize, Ordering::Relaxed);
    Ok(())
}

/// Runs `work` in the pool, and waits for it.
pub fn run<R: Send>(work: impl FnOnce() -> R) -> Result<R> {
    /// The work, which another thread runs.
    struct Work<F>(F);
    // SAFETY: this thread waits in `install` until the work is done, and does not use the work's data meanwhile. The work
    // has pointers of the caller, which may be used in any thread.
    unsafe impl<F> Send for Work<F> {}
    impl<F: FnOnce() -> R, R> Work<F> {
        fn run(self) -> R {
            (self.0)()
        }
    }
    let work = Work(work);
    Ok(pool()?.install(move || work.run()))
}

fn pool() -> Result<&'static ThreadPool> {
    let (process, threads) = (process::id(), THREADS.load(Ordering::Relaxed));
    let newest = POOLS.load(Ordering::Acquire);
    if let Some(pool) = find(newest, process, threads) {
        return Ok(pool);
    }
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| {
        let text = format!("the threads of the host functions could not be started: {e}");
        Failure::new(XACT_ERROR_THREADS, text)
    })?;
    // Every thread runs something once. A thread that still starts may hold a lock of the loader, the allocator or a sanitizer;
    // if the process forked then, the lock would stay locked in the child, whose first thread would wait forever.
    pool.broadcast(|_| ());
    let link = Box::into_raw(Box::new(Link {
        process,
        threads,
        pool,
        older: newest,
    }));
    // Another thread may have added a pool at the same time. Both are valid.
    let mut older = newest;
    while let Err(newest) = POOLS.compare_exchange(older, link, Ordering::AcqRel, Ordering::Acquire)
    {
        older = newest;
        // SAFETY: the link is not in the list yet, and nobody else knows it.
        unsafe { (*link).older = older };
    }
    // SAFETY: links are never freed, and do not change once they are in the list.
    Ok(unsafe { &(*link).pool })
}

fn find(newest: *const Link, process: u32, threads: usize) -> Option<&'static ThreadPool> {
    // SAFETY: links are never freed, and do not change once they are in the list.
    let link = |link: *const Link| unsafe { link.as_ref() };
    let mut links = iter::successors(link(newest), |newer| link(newer.older));
    let found = links.find(|link| (link.process, link.threads) == (process, threads));
    found.map(|link: &'static Link| &link.pool)
}
