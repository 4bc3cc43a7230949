//! Instruction sets. Only this file depends on the CPU architecture, and it has the only unsafe code of the CPU backend.
//!
//! The loops are plain Rust. They are compiled for each instruction set by inlining them into a function that may use that
//! set. They give the same bits in all of them, because rustc fuses no operations and sums have a fixed number of lanes.

#![allow(unsafe_code)]

use std::cell::Cell;

#[cfg(target_arch = "x86_64")]
use super::block::BLOCK;

/// An instruction set that this CPU has. Only [`InstructionSet::available`] makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionSet(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The base instruction set of the architecture. On x86-64 this is SSE2, where a fused multiply-add is a call into the C
    /// library: correct, but a hundred times slower.
    Portable,
    /// AVX2 with fused multiply-adds.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

thread_local! {
    static FORCED: Cell<Option<InstructionSet>> = const { Cell::new(None) };
}

impl InstructionSet {
    /// Returns the instruction sets that this CPU has, the fastest last.
    pub fn available() -> Vec<InstructionSet> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut kinds = vec![Kind::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                kinds.push(Kind::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    kinds.push(Kind::Avx512);
                }
            }
        }
        kinds.into_iter().map(InstructionSet).collect()
    }

    /// Returns the instruction set that calls in this thread use: the fastest one, unless another is forced.
    pub fn current() -> InstructionSet {
        use std::sync::OnceLock;
        static BEST: OnceLock<InstructionSet> = OnceLock::new();
        let best = || *BEST.get_or_init(|| *Self::available().last().expect("the portable one"));
        FORCED.get().unwrap_or_else(best)
    }

    /// Returns the name of the instruction set.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "AVX-512",
        }
    }

    /// Runs `f`. Calls that `f` makes in this thread use this instruction set.
    pub fn force<R>(self, f: impl FnOnce() -> R) -> R {
        struct Restore(Option<InstructionSet>);
        impl Drop for Restore {
            fn drop(&mut self) {
                FORCED.set(self.0);
            }
        }
        let _restore = Restore(FORCED.replace(Some(self)));
        f()
    }

    /// Runs `task`, compiled for this instruction set.
    pub(super) fn run<K: Task>(self, task: K) -> K::Output {
        match self.0 {
            Kind::Portable => task.run(),
            // SAFETY: `available` made this value, having found the features on this CPU.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { avx2(task) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { avx512(task) },
        }
    }
}

/// A task that is compiled for each instruction set. `run`, and all functions that it calls, must be `#[inline(always)]`.
pub(super) trait Task {
    /// The result of the task.
    type Output;
    /// Runs the task.
    fn run(self) -> Self::Output;
}

/// Prefetches the block of `tensor` that begins at `start`. Does nothing if fewer elements than a block are left.
#[inline(always)]
pub(super) fn prefetch<T>(tensor: &[T], start: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(block) = tensor.get(start..start + BLOCK) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for line in block.chunks_exact(LINE / size_of::<T>()) {
            // SAFETY: the instruction reads nothing, whatever the address, and every x86-64 has it.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (tensor, start);
}

/// The bytes of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<K: Task>(task: K) -> K::Output {
    task.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn avx512<K: Task>(task: K) -> K::Output {
    task.run()
}
