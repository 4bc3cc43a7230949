//! The loops over rows. One thread computes the stats of a row and then its gradient, so that the second read finds the row
//! in the cache. Different rows go to different threads. If there are too few rows for that, the parts of a row go to different
//! threads too: first for the stats, then for the gradient.
//!
//! A row has parts of [`PART`] columns. The stats of the parts are merged in their order, whichever threads computed them, and
//! all sums within a part have a fixed order, so the bits depend on neither the threads nor the number of rows.

use super::super::block::{BLOCK, Block, LANES, padded};
#[cfg(feature = "rayon")]
use super::super::map::PARALLEL_FROM;
use super::super::map::{AHEAD, CHUNK};
use super::super::math::{self, BIAS, FRACTION_BITS, LOG2E, ROUND, exp2_fraction};
use super::super::simd::{InstructionSet, Task, prefetch};
use super::row::{Base, Options, PartStats, RowGradient, Softcap, Target, merged};
use crate::blocks::RowStats;
use crate::dtype::{Convert, Dtype, Element};
use crate::loss::cross_entropy::RowStatus;

/// A row of a call.
pub struct Row<'a, T> {
    /// `None` if the logits are in `dlogits`.
    pub logits: Option<&'a [T]>,
    /// The output for the gradient, with the columns that are not classes. Empty if no gradient is computed.
    pub dlogits: &'a mut [T],
    pub target: Target,
    pub stats: RowStats,
}

/// The work on the rows of a call.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    pub options: Options,
    /// Whether the stats are computed; otherwise the given ones are used.
    pub find_stats: bool,
}

/// Rows of any element type. This type is not generic, so that the loops are compiled in this crate and not in its users.
pub enum AnyRows<'a> {
    F32(Vec<Row<'a, f32>>),
    F16(Vec<Row<'a, half::f16>>),
    Bf16(Vec<Row<'a, half::bf16>>),
}

impl<'a, T: Element> From<Vec<Row<'a, T>>> for AnyRows<'a> {
    fn from(rows: Vec<Row<'a, T>>) -> Self {
        match T::DTYPE {
            Dtype::F32 => AnyRows::F32(cast(rows)),
            Dtype::F16 => AnyRows::F16(cast(rows)),
            Dtype::Bf16 => AnyRows::Bf16(cast(rows)),
        }
    }
}

/// The same rows, where `U` is the same type as `T`.
fn cast<'a, T: Element, U: Element>(rows: Vec<Row<'a, T>>) -> Vec<Row<'a, U>> {
    let cast = |row: Row<'a, T>| Row {
        logits: row.logits.map(bytemuck::cast_slice),
        dlogits: bytemuck::cast_slice_mut(row.dlogits),
        target: row.target,
        stats: row.stats,
    };
    rows.into_iter().map(cast).collect()
}

impl Pass {
    /// Computes all rows, on the threads of rayon's current pool if there is enough work, and returns their stats.
    pub fn run(&self, rows: AnyRows<'_>) -> Vec<RowStats> {
        match rows {
            AnyRows::F32(rows) => run(self, rows),
            AnyRows::F16(rows) => run(self, rows),
            AnyRows::Bf16(rows) => run(self, rows),
        }
    }
}

/// The number of columns of a part of a row: the elements of a chunk of the activations, for the same reason.
const PART: usize = CHUNK;

fn run<T: Element>(pass: &Pass, mut rows: Vec<Row<'_, T>>) -> Vec<RowStats> {
    let set = InstructionSet::current();
    match pass.options.cap {
        None => pass.rows::<T, false>(set, &mut rows),
        Some(_) => pass.rows::<T, true>(set, &mut rows),
    }
    rows.iter().map(|row| row.stats).collect()
}

impl Pass {
    fn rows<T: Element, const CAP: bool>(&self, set: InstructionSet, rows: &mut [Row<'_, T>]) {
        let work = |row: &mut Row<'_, T>| {
            if self.find_stats {
                let parts = self.parts(row).map(|part| part.stats::<CAP>(set));
                let parts: Vec<_> = parts.collect();
                row.stats = merged(self.options.cap, parts.into_iter());
            }
            self.gradient::<T, CAP>(set, 0, row);
        };
        #[cfg(feature = "rayon")]
        if rows.len().saturating_mul(self.options.cols) >= PARALLEL_FROM {
            use rayon::prelude::*;
            let shared = rows.len() < 2 * rayon::current_num_threads() && self.options.cols > PART;
            return rows.par_iter_mut().for_each(|row| match shared {
                true => self.shared_row::<T, CAP>(set, row),
                false => work(row),
            });
        }
        rows.iter_mut().for_each(work);
    }

    /// Computes a row whose parts go to different threads.
    #[cfg(feature = "rayon")]
    fn shared_row<T: Element, const CAP: bool>(&self, set: InstructionSet, row: &mut Row<'_, T>) {
        use rayon::prelude::*;
        if self.find_stats {
            let parts: Vec<_> = self.parts(row).collect();
            let stats = parts.par_iter().map(|part| part.stats::<CAP>(set));
            let stats: Vec<_> = stats.collect();
            row.stats = merged(self.options.cap, stats.into_iter());
        }
        let parts: Vec<_> = row.split().collect();
        parts
            .into_par_iter()
            .for_each(|(first, mut part)| self.gradient::<T, CAP>(set, first, &mut part));
    }

    /// The parts of a row whose stats are needed.
    fn parts<'r, T: Element>(&self, row: &'r Row<'_, T>) -> impl Iterator<Item = Part<'r, T>> {
        let options = self.options;
        let cols = match options.has_loss(row.target.status) {
            true => options.cols,
            false => 0,
        };
        let logits = &row.logits.unwrap_or(row.dlogits)[..cols];
        let target = row.target.column;
        logits.chunks(PART).enumerate().map(move |(i, logits)| {
            let column = target.and_then(|column| column.checked_sub(i * PART));
            Part {
                logits,
                first_class: options.first_class + (i * PART) as u64,
                target: column.filter(|&column| column < logits.len()),
                options,
            }
        })
    }

    /// Writes the gradient of a row, or of the part of it that begins at column `first`.
    fn gradient<T: Element, const CAP: bool>(
        &self,
        set: InstructionSet,
        first: usize,
        row: &mut Row<'_, T>,
    ) {
        let classes = self.options.cols.saturating_sub(first);
        let (classes, padding) = row.dlogits.split_at_mut(classes.min(row.dlogits.len()));
        padding.fill(T::narrow(0.0));
        if classes.is_empty() {
            return;
        }
        match row.target.status {
            RowStatus::Masked | RowStatus::Dropped => classes.fill(T::narrow(0.0)),
            RowStatus::Bad => classes.fill(T::narrow(f32::NAN)),
            RowStatus::Kept => {
                let gradient = RowGradient::new(&self.options, &row.stats, row.target.upstream);
                set.run(Gradient::<T, CAP> {
                    logits: row.logits.map(|logits| &logits[..classes.len()]),
                    dlogits: classes,
                    cap: self.options.cap,
                    row: gradient,
                });
                let column = row
                    .target
                    .column
                    .and_then(|column| column.checked_sub(first));
                if let Some(dlogit) = column.and_then(|column| classes.get_mut(column)) {
                    *dlogit = T::narrow(gradient.target);
                }
            }
        }
    }
}

#[cfg(feature = "rayon")]
impl<T> Row<'_, T> {
    /// The parts of the row, each with its first column.
    fn split(&mut self) -> impl Iterator<Item = (usize, Row<'_, T>)> {
        let Row {
            logits,
            ref mut dlogits,
            target,
            stats,
        } = *self;
        let parts = dlogits.chunks_mut(PART).enumerate();
        parts.map(move |(i, dlogits)| {
            let part = Row {
                logits: logits.map(|logits| &logits[i * PART..]),
                dlogits,
                target,
                stats,
            };
            (i * PART, part)
        })
    }
}

/// The logit after the softcap, and the slope of the softcap.
#[inline(always)]
fn at<const CAP: bool>(cap: Option<Softcap>, z: f32) -> (f32, f32) {
    match cap {
        Some(cap) if CAP => cap.at(z),
        _ => (z, 1.0),
    }
}

/// The exponential of the loops: e^z / 2ⁿ, or 0 if that is subnormal. SMALL is for a base up to [`SMALL_BASE`], which almost
/// every row has. It takes 12 operations and not 16.
#[derive(Clone, Copy)]
struct Exp<const SMALL: bool> {
    base: Base,
    /// ROUND + BIAS − n, which is an integer of a size that f32 holds.
    shift: f32,
    /// The logit of the exponent −127. −inf becomes this.
    least: f32,
}

/// The largest |n| of a small base. The logit of the exponent −127 is then within 0.01 of its exact value.
const SMALL_BASE: f32 = 65_536.0;

impl<const SMALL: bool> Exp<SMALL> {
    #[inline(always)]
    fn new(base: Base) -> Exp<SMALL> {
        Exp {
            base,
            shift: ROUND + (BIAS as f32 - base.hi),
            least: (base.hi - 127.0) / LOG2E,
        }
    }

    #[inline(always)]
    fn of(self, z: f32) -> f32 {
        if SMALL {
            let z = math::max(z, self.least);
            // The low bits of `rounded` are the biased exponent. The fraction is computed in one fused step.
            let rounded = z.mul_add(LOG2E, self.shift);
            let fraction = z.mul_add(LOG2E, self.shift - rounded);
            let scale = f32::from_bits(rounded.to_bits() << FRACTION_BITS);
            exp2_fraction(fraction) * scale
        } else {
            math::exp2(math::max(self.base.exponent(z), -127.0))
        }
    }
}

/// The sums of a block's exponentials in lanes, and its largest logit, ignoring NaN.
#[inline(always)]
fn exponentials<const CAP: bool, const SMALL: bool>(
    Block(logits): &Block,
    cap: Option<Softcap>,
    base: Base,
) -> ([f32; LANES], f32) {
    /// The number of terms that are added in registers.
    const TERMS: usize = 4;
    const SUMS: usize = BLOCK / TERMS;
    let exp = Exp::<SMALL>::new(base);
    let (mut sums, mut max) = ([0.0; SUMS], [0.0; SUMS]);
    for i in 0..SUMS {
        let (mut e, mut of_terms) = ([0.0; TERMS], f32::NEG_INFINITY);
        for (term, e) in e.iter_mut().enumerate() {
            let z = logits[term * SUMS + i];
            of_terms = if z > of_terms { z } else { of_terms };
            *e = exp.of(at::<CAP>(cap, z).0);
        }
        sums[i] = (e[0] + e[1]) + (e[2] + e[3]);
        max[i] = of_terms;
    }
    let mut half = SUMS / 2;
    while half >= LANES {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    let mut half = SUMS / 2;
    while half > 0 {
        for i in 0..half {
            max[i] = if max[i + half] > max[i] {
                max[i + half]
            } else {
                max[i]
            };
        }
        half /= 2;
    }
    (std::array::from_fn(|i| sums[i]), max[0])
}

/// A part of a row, whose stats are computed.
struct Part<'a, T> {
    logits: &'a [T],
    /// The class of the first column.
    first_class: u64,
    /// The column of the target. Its exponential is kept out of the sum. In a row with p near 1 the exponentials of the
    /// other logits are relative to the largest of them, so that their exponents are not rounded.
    target: Option<usize>,
    options: Options,
}

impl<T: Element> Part<'_, T> {
    fn stats<const CAP: bool>(&self, set: InstructionSet) -> PartStats {
        set.run(Stats::<T, CAP>(self))
    }
}

struct Stats<'a, T, const CAP: bool>(&'a Part<'a, T>);

impl<T: Element, const CAP: bool> Task for Stats<'_, T, CAP> {
    type Output = PartStats;

    #[inline(always)]
    fn run(self) -> PartStats {
        /// When an exponent exceeds this, the sum is rescaled to a larger power of two. With real logits this happens a few
        /// times in a row. Exponents below 4 have a rounding error of 2⁻²⁴·1.4.
        const HEADROOM: f32 = 4.0;
        let Part {
            logits,
            first_class,
            target,
            options,
        } = *self.0;
        let Options {
            cap, with_argmax, ..
        } = options;
        let with_sum = options.label_smoothing > 0.0;
        let capped = |z| at::<CAP>(cap, z).0;
        let (mut max, mut first_block) = (f32::NEG_INFINITY, 0);
        let mut base = Base::new(max);
        let mut target_logit = f32::NEG_INFINITY;
        let (mut rest, mut sum) = ([0.0; LANES], [0.0; LANES]);
        let mut z = Block::ZERO;
        for start in (0..logits.len()).step_by(BLOCK) {
            prefetch(logits, start + AHEAD);
            let of_part = &logits[start..logits.len().min(start + BLOCK)];
            let apart = target
                .and_then(|target| target.checked_sub(start))
                .filter(|&i| i < of_part.len());
            // The target, and what is missing in the last block, must not add to the sums.
            let without = |with: f32| {
                let mut block = padded(of_part, T::narrow(with));
                if let Some(i) = apart {
                    block[i] = T::narrow(with);
                }
                block
            };
            match of_part.try_into() {
                Ok(whole) if apart.is_none() => z.load_whole::<T>(whole),
                _ => z.load_whole(&without(f32::NEG_INFINITY)),
            }
            if let Some(i) = apart {
                target_logit = of_part[i].widen();
            }
            loop {
                let (sums, max_of_block) = if base.hi.abs() <= SMALL_BASE {
                    exponentials::<CAP, true>(&z, cap, base)
                } else {
                    exponentials::<CAP, false>(&z, cap, base)
                };
                if max_of_block > max {
                    (max, first_block) = (max_of_block, start);
                    if base.exponent(capped(max)) > HEADROOM {
                        // The exponentials may have overflowed, so they are computed again.
                        let to = Base::new(capped(max));
                        let factor = base.factor_to(to);
                        rest.iter_mut().for_each(|lane| *lane *= factor);
                        base = to;
                        continue;
                    }
                }
                for (lane, sum) in rest.iter_mut().zip(sums) {
                    *lane += f64::from(sum);
                }
                break;
            }
            if with_sum {
                z.load_whole(&without(0.0));
                if CAP {
                    z.0.iter_mut().for_each(|z| *z = capped(*z));
                }
                z.add_to(&mut sum);
            }
        }
        // NaN is ignored here too.
        let all = if target_logit > max {
            target_logit
        } else {
            max
        };
        let argmax = || {
            let of_target = target.filter(|_| target_logit == all);
            let mut others = (first_block..logits.len()).filter(|_| max == all);
            let of_others = others.find(|&i| Some(i) != target && logits[i].widen() == all);
            let first = of_others.into_iter().chain(of_target).min();
            first.map_or(u32::MAX, |at| (first_class + at as u64) as u32)
        };
        let factor = base.factor_to(Base::new(capped(all)));
        let of_target = target.map_or(0.0, |_| f64::from(capped(target_logit)));
        PartStats {
            max: all,
            rest: rest.iter().sum::<f64>() * factor,
            target: f32::narrow(target_logit),
            sum: if with_sum {
                sum.iter().sum::<f64>() + of_target
            } else {
                0.0
            },
            argmax: if with_argmax { argmax() } else { u32::MAX },
        }
    }
}

/// The gradient of a kept row, or of a part of it, as if it had no target.
struct Gradient<'a, T, const CAP: bool> {
    /// The logits of the classes; `None` if they are in `dlogits`.
    logits: Option<&'a [T]>,
    dlogits: &'a mut [T],
    cap: Option<Softcap>,
    row: RowGradient,
}

impl<T: Element, const CAP: bool> Task for Gradient<'_, T, CAP> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if self.row.base.hi.abs() <= SMALL_BASE {
            self.write::<true>();
        } else {
            self.write::<false>();
        }
    }
}

impl<T: Element, const CAP: bool> Gradient<'_, T, CAP> {
    #[inline(always)]
    fn write<const SMALL: bool>(self) {
        let Gradient {
            logits,
            dlogits,
            cap,
            row,
        } = self;
        let exp = Exp::<SMALL>::new(row.base);
        let mut block = Block::ZERO;
        for start in (0..dlogits.len()).step_by(BLOCK) {
            let range = start..dlogits.len().min(start + BLOCK);
            for tensor in [logits.unwrap_or_default(), dlogits] {
                prefetch(tensor, start + AHEAD);
            }
            block.load(logits.map_or(&dlogits[range.clone()], |logits| &logits[range.clone()]));
            for z in &mut block.0 {
                let (capped, slope) = at::<CAP>(cap, *z);
                let of_z = exp.of(capped).mul_add(row.k, -row.offset);
                *z = if CAP { of_z * slope } else { of_z };
            }
            block.store(&mut dlogits[range]);
        }
    }
}
