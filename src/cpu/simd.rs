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

    /// Returns the rows and columns of the largest tile of a matrix that the registers hold.
    pub(super) fn tile(self) -> [usize; 2] {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => WIDE_TILE,
            _ => TILE,
        }
    }

    /// Multiplies `a`, `[terms, rows of a tile]`, and `b`, `[terms, columns of a tile]`, and sets `tile` to the product or adds
    /// it. Each element of the product is one chain of fused multiply-adds.
    pub(super) fn multiply(self, a: &[f32], b: &[f32], tile: &mut [f32], add: bool) {
        match self.0 {
            Kind::Portable => multiply(a, b, tile, add),
            // SAFETY: `available` made this value, having found the features on this CPU.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { multiply_avx2(a, b, tile, add) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { multiply_avx512(a, b, tile, add) },
        }
    }

    /// Runs `task`, compiled for this instruction set and its [`tile`](Self::tile).
    pub(super) fn run_tile<K: TileTask>(self, task: K) {
        match self.0 {
            Kind::Portable => OfSize::<K, { TILE[0] }, { TILE[1] }>(task).run(),
            // SAFETY: `available` made this value, having found the features on this CPU.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { avx2(OfSize::<K, { TILE[0] }, { TILE[1] }>(task)) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe {
                avx512(OfSize::<K, { WIDE_TILE[0] }, { WIDE_TILE[1] }>(task))
            },
        }
    }
}

/// Makes the function that multiplies panels in registers of an instruction set. rustc does not reliably keep plain arrays in
/// registers.
#[cfg(target_arch = "x86_64")]
macro_rules! multiply {
    (
        $(#[$features:meta])* $name:ident, $tile:expr, $lanes:literal,
        $zero:ident, $splat:ident, $load:ident, $fma:ident, $add:ident, $store:ident
    ) => {
        $(#[$features])*
        fn $name(a: &[f32], b: &[f32], tile: &mut [f32], add: bool) {
            use std::arch::x86_64::{$add, $fma, $load, $splat, $store, $zero};
            const ROWS: usize = $tile[0];
            const VECTORS: usize = $tile[1] / $lanes;
            let mut sums = [[$zero(); VECTORS]; ROWS];
            let b = b.as_chunks::<$lanes>().0.as_chunks::<VECTORS>().0;
            for (a, b) in a.as_chunks::<ROWS>().0.iter().zip(b) {
                let mut of_b = [$zero(); VECTORS];
                for (of_b, b) in of_b.iter_mut().zip(b) {
                    // SAFETY: it reads the lanes of `b`.
                    *of_b = unsafe { $load(b.as_ptr()) };
                }
                for (sums, a) in sums.iter_mut().zip(a) {
                    let a = $splat(*a);
                    for (sum, b) in sums.iter_mut().zip(of_b) {
                        *sum = $fma(a, b, *sum);
                    }
                }
            }
            let tile = tile.as_chunks_mut::<$lanes>().0;
            for (to, sum) in tile.iter_mut().zip(sums.as_flattened()) {
                // SAFETY: it reads and writes the lanes of `to`.
                unsafe {
                    let sum = match add {
                        true => $add($load(to.as_ptr()), *sum),
                        false => *sum,
                    };
                    $store(to.as_mut_ptr(), sum);
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
multiply! {
    #[target_feature(enable = "avx2,fma")]
    multiply_avx2, TILE, 8,
    _mm256_setzero_ps, _mm256_set1_ps, _mm256_loadu_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_storeu_ps
}

#[cfg(target_arch = "x86_64")]
multiply! {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    multiply_avx512, WIDE_TILE, 16,
    _mm512_setzero_ps, _mm512_set1_ps, _mm512_loadu_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_storeu_ps
}

/// The same in any instruction set.
fn multiply(a: &[f32], b: &[f32], tile: &mut [f32], add: bool) {
    const ROWS: usize = TILE[0];
    const COLS: usize = TILE[1];
    let mut sums = [[0.0; COLS]; ROWS];
    for (a, b) in a.as_chunks::<ROWS>().0.iter().zip(b.as_chunks::<COLS>().0) {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = a.mul_add(*b, *sum);
            }
        }
    }
    for (to, sum) in tile.iter_mut().zip(sums.as_flattened()) {
        *to = if add { *to + sum } else { *sum };
    }
}

/// A task on a tile of a matrix, which is compiled for the numbers of rows and columns of [`InstructionSet::tile`]. `run`, and
/// all functions that it calls, must be `#[inline(always)]`.
pub(super) trait TileTask {
    /// Runs the task.
    fn run<const ROWS: usize, const COLS: usize>(self);
}

/// A [`TileTask`] for one size of tile.
struct OfSize<K, const ROWS: usize, const COLS: usize>(K);

impl<K: TileTask, const ROWS: usize, const COLS: usize> Task for OfSize<K, ROWS, COLS> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.0.run::<ROWS, COLS>();
    }
}

/// The rows and columns of the tile that 16 registers of 8 lanes hold, with a row of the other operand and an element.
const TILE: [usize; 2] = [6, 16];

/// The same of 32 registers of 16 lanes.
#[cfg(target_arch = "x86_64")]
const WIDE_TILE: [usize; 2] = [6, 64];

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
