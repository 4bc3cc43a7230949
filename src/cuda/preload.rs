//! Loading of all kernels before they are used.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::device::Device;
use super::entry::Entry;
use super::raw::{activation, cross_entropy, goldfish};
use crate::error::Result;

/// All kernel entries of the crate.
fn entries() -> impl Iterator<Item = Entry> {
    activation::entries()
        .chain(cross_entropy::entries())
        .chain(goldfish::entries())
}

/// Returns the names of all kernel entries. A test compares them with the embedded PTX.
#[doc(hidden)]
pub fn entry_names() -> Vec<String> {
    entries().map(|entry| entry.name()).collect()
}

impl Device {
    /// Loads all kernels on to the device now, so that later launches load nothing. This is required before a stream
    /// capture. Machine code loads as it is, if the build embedded some for the device and the driver (`XACT_CUDA_ARCHS`).
    /// Otherwise the driver compiles PTX, several kernel files at once in as many threads as there are cores.
    ///
    /// # Errors
    /// [`Driver`](crate::Error::Driver), [`DriverTooOld`](crate::Error::DriverTooOld),
    /// [`DeviceTooOld`](crate::Error::DeviceTooOld), or [`NotLoaded`](crate::Error::NotLoaded). If several kernels fail, the
    /// error is that of the first in the order of the kernels.
    pub fn preload(&self) -> Result<()> {
        let mut files: Vec<Vec<Entry>> = Vec::new();
        for entry in entries() {
            let is_of = |file: &&mut Vec<Entry>| file.iter().any(|e| e.stem == entry.stem);
            match files.iter_mut().find(is_of) {
                Some(file) => file.push(entry),
                None => files.push(vec![entry]),
            }
        }
        in_threads(&files, |file| {
            file.iter().try_for_each(|entry| {
                if self.has(*entry)? {
                    self.force_load(&self.function(*entry)?)?;
                }
                Ok(())
            })
        })
    }
}

/// Runs `jobs` in this thread and in others, up to the number of cores. Returns the first error in the order of the jobs.
fn in_threads<J: Sync>(jobs: &[J], work: impl Fn(&J) -> Result<()> + Sync) -> Result<()> {
    let results: Vec<_> = jobs.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work_off = || {
        while let Some((job, result)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            jobs.get(index).zip(results.get(index))
        } {
            // No other thread has this index.
            let _ = result.set(work(job));
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 1..cores.min(jobs.len()) {
            // If no thread can be started, the running ones do its jobs.
            let _ = thread::Builder::new().spawn_scoped(scope, work_off);
        }
        work_off();
    });
    results
        .into_iter()
        .filter_map(OnceLock::into_inner)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn every_job_is_done_and_the_first_error_is_that_of_the_first_job() {
        let jobs: Vec<u64> = (0..20).collect();
        let done = AtomicUsize::new(0);
        let work = |job: &u64| {
            done.fetch_add(1, Ordering::Relaxed);
            match job {
                7 | 3 | 19 => Err(Error::Offsets { at: *job }),
                _ => Ok(()),
            }
        };
        for _ in 0..10 {
            assert_eq!(in_threads(&jobs, work), Err(Error::Offsets { at: 3 }));
        }
        assert_eq!(done.into_inner(), 200);
        assert_eq!(in_threads(&jobs[..3], |_| Ok(())), Ok(()));
        assert_eq!(in_threads(&jobs[..0], |_| Err(Error::WrongThread)), Ok(()));
    }
}
