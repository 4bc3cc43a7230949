//! Values that are made on first use, one lock for each.

use std::sync::{Mutex, PoisonError};

use crate::error::Result;

/// A value for each of a few names, made on first use. A thread that asks for a value that is being made waits; a thread that
/// asks for another value does not.
#[derive(Debug)]
pub(super) struct Slots<T>(Vec<(&'static str, Mutex<Option<T>>)>);

impl<T: Clone> Slots<T> {
    pub(super) fn new(names: impl Iterator<Item = &'static str>) -> Slots<T> {
        let mut slots: Vec<(_, Mutex<Option<T>>)> = Vec::new();
        for name in names {
            if slots.iter().all(|(known, _)| *known != name) {
                slots.push((name, Mutex::default()));
            }
        }
        Slots(slots)
    }

    /// Returns the value of a name, and makes it on first use. A failure is not stored, so the next call tries again. The
    /// value of a name without a slot is not stored either.
    pub(super) fn get(&self, name: &str, make: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some((_, slot)) = self.0.iter().find(|(known, _)| *known == name) else {
            return make();
        };
        // A poisoned lock means that `make` panicked, so the slot is empty.
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*slot {
            return Ok(made.clone());
        }
        let made = make()?;
        *slot = Some(made.clone());
        Ok(made)
    }

    /// Returns the values that are made so far, without those that are being made.
    pub(super) fn made(&self) -> Vec<T> {
        let slots = self.0.iter();
        slots
            .filter_map(|(_, slot)| slot.try_lock().ok()?.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::error::Error;

    fn slots() -> Slots<u32> {
        Slots::new(["a", "b", "a"].into_iter())
    }

    #[test]
    fn one_does_not_wait_for_another() {
        let slots = slots();
        let (begun, is_begun) = mpsc::channel();
        let (made, is_made) = mpsc::channel();
        thread::scope(|scope| {
            let slots = &slots;
            let a = scope.spawn(move || {
                slots.get("a", || {
                    begun.send(()).expect("the other waits");
                    let waited = is_made.recv_timeout(Duration::from_secs(10));
                    assert_eq!(waited, Ok(()), "b waits for a");
                    Ok(1)
                })
            });
            is_begun.recv().expect("a is being made");
            assert_eq!(slots.get("b", || Ok(2)), Ok(2));
            made.send(()).expect("a waits");
            assert_eq!(a.join().expect("no panic"), Ok(1));
        });
        assert_eq!(slots.made(), [1, 2]);
    }

    #[test]
    fn each_is_made_once() {
        let (slots, count) = (slots(), AtomicU32::new(0));
        let make = || {
            // Long enough for the other thread to come.
            thread::sleep(Duration::from_millis(20));
            Ok(count.fetch_add(1, Ordering::Relaxed))
        };
        thread::scope(|scope| {
            let others = [
                scope.spawn(|| slots.get("a", make)),
                scope.spawn(|| slots.get("a", make)),
            ];
            for other in others {
                assert_eq!(other.join().expect("no panic"), Ok(0));
            }
        });
        assert_eq!(count.into_inner(), 1);
    }

    #[test]
    fn a_failure_is_not_kept() {
        let slots = slots();
        assert_eq!(
            slots.get("a", || Err(Error::WrongThread)),
            Err(Error::WrongThread)
        );
        assert_eq!(slots.get("a", || Ok(3)), Ok(3));
        assert_eq!(slots.get("c", || Ok(4)), Ok(4));
    }
}
