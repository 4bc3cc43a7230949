//! The elementwise loops. An activation is a [`Function`] that the loops call.
//!
//! A tensor is divided into chunks of [`CHUNK`] elements, which the threads share. A chunk is divided into blocks of
//! [`BLOCK`] elements, which are converted to f32 on the stack. Each loop over a block does one thing on arrays of fixed
//! size, so that the compiler makes vector code of it. A chunk sums the terms of the parameter gradients in [`LANES`] f64
//! lanes. The lanes and then the chunks are added in a fixed order, so any number of threads gives the same bits.
//!
//! ```text
//! y = g(x)·v      dx = dy·v·g′(x)    dv = dy·g(x)    dp = Σ dy·v·∂g/∂p    with v = 1 if plain
//! ```

use std::ops::Range;

use super::block::{BLOCK, Block, LANES, split, weave};
use super::function::Function;
use super::segment::Segment;
use super::simd::{InstructionSet, Task, prefetch};
use crate::activation::MAX_PARAMS;
use crate::dtype::Element;
use crate::shape::Interleaving;

/// The number of elements of a chunk: a multiple of 64 bytes in every type, and large compared with the cost of handing a
/// chunk to another thread.
pub const CHUNK: usize = 1 << 15;

// Chunks have whole blocks of columns of gate and value.
const _: () = assert!(CHUNK.is_multiple_of(BLOCK));

/// The prefetch distance in elements. The work on a block takes longer than a CPU looks ahead by itself: with this prefetch a
/// backward over 2²⁴ f32 elements takes half the time (Zen 5; 4 blocks ahead are as good, and non-temporal stores are no
/// better).
pub const AHEAD: usize = 2 * BLOCK;

/// The sum of the terms of each parameter.
pub type Sums = [f64; MAX_PARAMS];

/// A chunk as a task: its segments, and the function to apply.
pub struct Work<'a, F, T, const GATED: bool> {
    pub f: F,
    pub backward: bool,
    pub segments: Vec<Segment<'a, T>>,
}

impl<F: Function, T: Element, const GATED: bool> Task for Work<'_, F, T, GATED> {
    type Output = Sums;

    #[inline(always)]
    fn run(self) -> Sums {
        let mut total = Sums::default();
        for segment in self.segments {
            if self.backward {
                for (total, sum) in total
                    .iter_mut()
                    .zip(backward::<F, T, GATED>(self.f, segment))
                {
                    *total += sum;
                }
            } else {
                forward::<F, T, GATED>(self.f, segment);
            }
        }
        total
    }
}

/// Loads a block of x and v from elements in which they alternate.
#[inline(always)]
fn load_pair<T: Element>(
    from: &[T],
    range: Range<usize>,
    interleaving: Interleaving,
    x: &mut Block,
    v: &mut Block,
) {
    prefetch(from, 2 * (range.start + AHEAD));
    prefetch(from, 2 * (range.start + AHEAD) + BLOCK);
    let [of_x, of_v] = split(&from[2 * range.start..2 * range.end], interleaving);
    x.load_whole(&of_x);
    v.load_whole(&of_v);
}

/// y = g(x) or, gated, y = g(x)·v.
#[inline(always)]
fn forward<F: Function, T: Element, const GATED: bool>(f: F, segment: Segment<'_, T>) {
    let Segment {
        x, v, out: y, xv, ..
    } = segment;
    let v = v.unwrap_or_default();
    let [mut xs, mut vs, mut ys] = [Block::ZERO; 3];
    for start in (0..y.len()).step_by(BLOCK) {
        let range = start..y.len().min(start + BLOCK);
        prefetch(y, start + AHEAD);
        match (x, xv) {
            (Some(x), Some(interleaving)) if GATED => {
                load_pair(x, range.clone(), interleaving, &mut xs, &mut vs);
            }
            _ => {
                prefetch(x.unwrap_or_default(), start + AHEAD);
                xs.load(x.map_or(&y[range.clone()], |x| &x[range.clone()]));
                if GATED {
                    prefetch(v, start + AHEAD);
                    vs.load(&v[range.clone()]);
                }
            }
        }
        values::<F, GATED>(f, &xs, &vs, &mut ys);
        ys.store(&mut y[range]);
    }
}

#[inline(always)]
fn values<F: Function, const GATED: bool>(
    f: F,
    Block(x): &Block,
    Block(v): &Block,
    Block(y): &mut Block,
) {
    for i in 0..BLOCK {
        let g = f.value(x[i]);
        y[i] = if GATED { g * v[i] } else { g };
    }
}

/// Writes the gradients of x and v, and returns the sums of the parameter gradients.
#[inline(always)]
fn backward<F: Function, T: Element, const GATED: bool>(f: F, segment: Segment<'_, T>) -> Sums {
    let len = segment.len();
    let Segment {
        x,
        v,
        dy,
        out: dx,
        dv,
        mut y,
        xv,
        dxv,
    } = segment;
    let [mut xs, mut vs, mut dys, mut dxs, mut dvs] = [Block::ZERO; 5];
    let mut terms = [Block::ZERO; MAX_PARAMS];
    let mut lanes = [[0.0; LANES]; MAX_PARAMS];
    for start in (0..len).step_by(BLOCK) {
        let range = start..len.min(start + BLOCK);
        prefetch(dy.unwrap_or_default(), start + AHEAD);
        let of_out = if dxv.is_some() { 2 } else { 1 };
        prefetch(dx, of_out * (start + AHEAD));
        prefetch(dv, start + AHEAD);
        // A short block is padded with dy = 0, so that the padding adds 0 to the sums.
        dys.load(dy.map_or(&dx[range.clone()], |dy| &dy[range.clone()]));
        let interleaved = match x {
            Some(x) => xv.map(|interleaving| (x, interleaving)),
            None => dxv.map(|interleaving| (&*dx, interleaving)),
        };
        match interleaved {
            Some((both, interleaving)) if GATED => {
                load_pair(both, range.clone(), interleaving, &mut xs, &mut vs);
            }
            _ => {
                prefetch(x.unwrap_or_default(), start + AHEAD);
                xs.load(x.map_or(&dx[range.clone()], |x| &x[range.clone()]));
                if GATED {
                    prefetch(v.unwrap_or_default(), start + AHEAD);
                    vs.load(&v.unwrap_or(dv)[range.clone()]);
                }
            }
        }
        for i in 0..BLOCK {
            let dg = if GATED { dys.0[i] * vs.0[i] } else { dys.0[i] };
            let g = f.at(xs.0[i], dg);
            dxs.0[i] = dg * g.slope;
            if GATED {
                dvs.0[i] = dys.0[i] * g.value;
            }
            for (terms, term) in terms.iter_mut().zip(g.terms).take(F::PARAMS) {
                terms.0[i] = term;
            }
        }
        match dxv {
            Some(interleaving) if GATED => {
                let [mut of_x, mut of_v] = [[T::zeroed(); BLOCK]; 2];
                dxs.store_whole(&mut of_x);
                dvs.store_whole(&mut of_v);
                let both = &mut dx[2 * range.start..2 * range.end];
                weave(&of_x, &of_v, interleaving, both);
            }
            _ => {
                dxs.store(&mut dx[range.clone()]);
                if GATED {
                    dvs.store(&mut dv[range.clone()]);
                }
            }
        }
        for (lanes, terms) in lanes.iter_mut().zip(&mut terms).take(F::PARAMS) {
            terms.add_to(lanes);
        }
        if let Some(y) = &mut y {
            values::<F, GATED>(f, &xs, &vs, &mut dxs);
            dxs.store(&mut y[range]);
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// Runs the chunks of a tensor of `len` elements in this thread, or on the threads of rayon's current pool if the tensor is
/// large enough.
pub fn run_all<K: Task<Output = Sums> + Send>(len: usize, chunks: impl Iterator<Item = K>) -> Sums {
    let isa = InstructionSet::current();
    let run = move |chunk: K| isa.run(chunk);
    let mut total = Sums::default();
    let mut add = |sums: Sums| {
        for (total, sum) in total.iter_mut().zip(sums) {
            *total += sum;
        }
    };
    #[cfg(feature = "rayon")]
    if len >= PARALLEL_FROM {
        use rayon::prelude::*;
        // Boxed, so that rayon's machinery is compiled for one type of work and not for every loop.
        type Work<'a> = Box<dyn FnOnce() -> Sums + Send + 'a>;
        let work: Vec<Work<'_>> = chunks
            .map(|chunk| Box::new(move || run(chunk)) as Work<'_>)
            .collect();
        let sums: Vec<Sums> = work.into_par_iter().map(|work| work()).collect();
        sums.into_iter().for_each(add);
        return total;
    }
    let _ = len;
    chunks.map(run).for_each(&mut add);
    total
}

/// The number of elements from which several threads are used. Handing work to the pool and waiting for it takes 12 µs
/// (Zen 5). One thread computes a forward of 40 thousand elements in that time, a sixth of this number.
#[cfg(feature = "rayon")]
pub const PARALLEL_FROM: usize = 8 * CHUNK;
