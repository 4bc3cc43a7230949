//! Memory of results on the CPU.

// The call of the system.
#![allow(unsafe_code)]

use bytemuck::Zeroable;

/// Below, huge pages gain nothing.
const LEAST_BYTES: usize = 4 << 20;

/// The size of a huge page on x86-64, and of the common one on AArch64.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Allocates an output. The system provides zeroed pages lazily, so nothing is written twice. For large outputs it is asked
/// for huge pages: with pages of 4 KiB, the faults of the first writes take longer than the work.
pub(crate) fn room<T: Zeroable>(len: usize) -> Vec<T> {
    let made = bytemuck::zeroed_vec::<T>(len);
    if size_of_val(made.as_slice()) >= LEAST_BYTES {
        advise(made.as_slice());
    }
    made
}

#[cfg(target_os = "linux")]
fn advise<T>(memory: &[T]) {
    let range = memory.as_ptr_range();
    let start = (range.start as usize).next_multiple_of(HUGE_PAGE_BYTES);
    let end = range.end as usize / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    // SAFETY: the pages lie within the slice. Advice changes no contents, and may be refused.
    unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise<T>(_: &[T]) {}
