//! The driver calls, by chapter of the CUDA driver API.
//!
//! Every function here of the form `pub unsafe extern "C" fn cu…` becomes a symbol of the
//! `libcuda.so` that [`crate::install`] loads: the build script finds them by that line. Other driver calls are missing
//! from that library, and a program that needs one reports its name.

pub(crate) mod context;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod function;
pub(crate) mod graph;
pub(crate) mod launch;
pub(crate) mod memory;
pub(crate) mod module;
pub(crate) mod order;
pub(crate) mod stream;

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use error::Error;

/// A `CUresult`.
pub(crate) type Status = u32;
/// An opaque handle.
pub(crate) type Handle = *mut c_void;

thread_local! {
    /// The number of driver calls on the stack of this thread. It has no lazy initialisation and no destructor, so that an
    /// allocator may read it.
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Whether a driver call runs on this thread: what a thread allocates then is the emulator's, and not that of the
/// program that is tested. The functions that `cuLaunchHostFunc` calls run inside one. The threads that help with a
/// long launch ([`Settings::workers`](crate::Settings::workers)) are not in one.
pub fn in_driver_call() -> bool {
    DEPTH.get() > 0
}

/// Runs the body of a driver call. A panic does not cross the C boundary.
pub(crate) fn call(f: impl FnOnce() -> Result<(), Error>) -> Status {
    DEPTH.set(DEPTH.get() + 1);
    let status = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
        Ok(Ok(())) => 0,
        Ok(Err(e)) => e.0,
        Err(_) => Error::UNKNOWN.0,
    };
    DEPTH.set(DEPTH.get() - 1);
    status
}

/// Writes a result.
///
/// # Safety
/// `to` is null or valid for a write: the caller of the driver call answers for it.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Result<(), Error> {
    if to.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: not null, and valid by this function's contract.
    unsafe { to.write(value) };
    Ok(())
}

/// Objects of one kind by handle. Handles are never reused, so a stale handle is recognised.
pub(crate) struct Registry<T> {
    objects: LazyLock<Mutex<HashMap<usize, Arc<T>>>>,
}

/// The next handle: small numbers are special streams.
static NEXT: AtomicUsize = AtomicUsize::new(0x10_0000);

impl<T> Registry<T> {
    pub const fn new() -> Self {
        Registry {
            objects: LazyLock::new(Mutex::default),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Arc<T>>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn insert(&self, object: T) -> Handle {
        let handle = NEXT.fetch_add(16, Relaxed);
        self.lock().insert(handle, Arc::new(object));
        handle as Handle
    }

    pub fn get(&self, handle: Handle) -> Result<Arc<T>, Error> {
        self.lock()
            .get(&(handle as usize))
            .cloned()
            .ok_or(Error::INVALID_HANDLE)
    }

    pub fn remove(&self, handle: Handle) -> Result<Arc<T>, Error> {
        self.lock()
            .remove(&(handle as usize))
            .ok_or(Error::INVALID_HANDLE)
    }

    pub fn remove_where(&self, f: impl Fn(&T) -> bool) {
        self.lock().retain(|_, o| !f(o));
    }
}

/// Locks, also if a thread panicked while it held the lock.
pub(crate) fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_knows_whether_it_is_in_a_driver_call() {
        assert!(!in_driver_call());
        let nested = || {
            assert_eq!(call(|| Err(Error::INVALID_VALUE)), Error::INVALID_VALUE.0);
            assert!(in_driver_call());
            assert!(!std::thread::spawn(in_driver_call).join().expect("no panic"));
            Ok(())
        };
        assert_eq!(call(nested), 0);
        assert!(!in_driver_call());
        assert_eq!(call(|| panic!("meant to")), Error::UNKNOWN.0);
        assert!(!in_driver_call());
    }
}
