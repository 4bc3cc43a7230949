//! The elementwise loops, written once; an activation is a [`Function`] handed to them.
//!
//! A tensor is cut into chunks of [`CHUNK`] elements, which threads share, a chunk into blocks of [`BLOCK`],
//! which are converted to f32 on the stack. Each loop over a block does one thing on arrays of fixed size,
//! which is what makes it vector code. A chunk adds the terms of the parameter gradients in [`LANES`] f64
//! lanes, the lanes in their order, and the chunks are added in theirs: the same bits on any number of threads.
//!
//! ```text
//! y = g(x)·v      dx = dy·v·g′(x)    dv = dy·g(x)    dp = Σ dy·v·∂g/∂p    with v = 1 if plain
//! ```

use super::block::{BLOCK, Block};
use super::function::Function;
use super::segment::Segment;
use super::simd::{InstructionSet, Task, prefetch};
use crate::activation::MAX_PARAMS;
use crate::dtype::Element;

/// Elements of a chunk: a multiple of 64 bytes in every type, and long beside what it costs to hand one to
/// another thread.
pub const CHUNK: usize = 1 << 15;

/// How far ahead of a block the tensors are asked for. The work on a block is longer than what a CPU looks
/// ahead by itself: with this a backward over 2²⁴ elements of f32 takes half the time (Zen 5; 4 blocks ahead
/// are as good, stores past the cache are no better).
pub const AHEAD: usize = 2 * BLOCK;

/// Independent sums: two registers of f64 in the widest instruction set.
const LANES: usize = 16;

/// Sums of the terms of each parameter.
pub type Sums = [f64; MAX_PARAMS];

/// The segments of a chunk, and what to do with them.
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

/// y = g(x) or, gated, y = g(x)·v.
#[inline(always)]
fn forward<F: Function, T: Element, const GATED: bool>(f: F, segment: Segment<'_, T>) {
    let Segment { x, v, out: y, .. } = segment;
    let v = v.unwrap_or_default();
    let [mut xs, mut vs, mut ys] = [Block::ZERO; 3];
    for start in (0..y.len()).step_by(BLOCK) {
        let range = start..y.len().min(start + BLOCK);
        for tensor in [x.unwrap_or_default(), v, y] {
            prefetch(tensor, start + AHEAD);
        }
        xs.load(x.map_or(&y[range.clone()], |x| &x[range.clone()]));
        if GATED {
            vs.load(&v[range.clone()]);
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
        let g = f.at(x[i], 0.0).value;
        y[i] = if GATED { g * v[i] } else { g };
    }
}

/// The gradients of x and v, and the sums of those of the parameters.
#[inline(always)]
fn backward<F: Function, T: Element, const GATED: bool>(f: F, segment: Segment<'_, T>) -> Sums {
    let Segment {
        x,
        v,
        dy,
        out: dx,
        dv,
        mut y,
    } = segment;
    let [mut xs, mut vs, mut dys, mut dxs, mut dvs] = [Block::ZERO; 5];
    let mut terms = [Block::ZERO; MAX_PARAMS];
    let mut lanes = [[0.0; LANES]; MAX_PARAMS];
    for start in (0..dx.len()).step_by(BLOCK) {
        let range = start..dx.len().min(start + BLOCK);
        for tensor in [x, v, dy].map(Option::unwrap_or_default) {
            prefetch(tensor, start + AHEAD);
        }
        prefetch(dx, start + AHEAD);
        prefetch(dv, start + AHEAD);
        xs.load(x.map_or(&dx[range.clone()], |x| &x[range.clone()]));
        // A short block is filled up with dy = 0, so its terms are 0.
        dys.load(dy.map_or(&dx[range.clone()], |dy| &dy[range.clone()]));
        if GATED {
            vs.load(v.map_or(&dv[range.clone()], |v| &v[range.clone()]));
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
        dxs.store(&mut dx[range.clone()]);
        if GATED {
            dvs.store(&mut dv[range.clone()]);
        }
        for (lanes, terms) in lanes.iter_mut().zip(&terms).take(F::PARAMS) {
            for group in terms.0.as_chunks::<LANES>().0 {
                for (lane, term) in lanes.iter_mut().zip(group) {
                    *lane += f64::from(*term);
                }
            }
        }
        if let Some(y) = &mut y {
            values::<F, GATED>(f, &xs, &vs, &mut dxs);
            dxs.store(&mut y[range]);
        }
    }
    lanes.map(|lanes| lanes.iter().sum())
}

/// Runs the chunks of a tensor of `len` elements in order, or on the threads of rayon's current pool where
/// there are enough.
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

/// Elements from which there are threads. Handing work to the pool and waiting for it takes 12 µs (Zen 5),
/// as long as one thread takes for 40 thousand elements of a forward: here that is a sixth of the whole.
#[cfg(feature = "rayon")]
pub const PARALLEL_FROM: usize = 8 * CHUNK;
