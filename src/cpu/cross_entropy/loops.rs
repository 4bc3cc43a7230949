//! The loops over rows. One thread computes the stats of a row and then its gradient, so that the second read finds the row
//! in the cache. Different rows go to different threads. All sums have a fixed order.

use super::super::block::{BLOCK, Block, LANES};
use super::super::map::AHEAD;
#[cfg(feature = "rayon")]
use super::super::map::PARALLEL_FROM;
use super::super::math::exp2;
use super::super::simd::{InstructionSet, Task, prefetch};
use super::row::{Base, NO_STATS, Options, RowGradient, Softcap, Target, rounded};
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

fn run<T: Element>(pass: &Pass, mut rows: Vec<Row<'_, T>>) -> Vec<RowStats> {
    let set = InstructionSet::current();
    let work = |row: &mut Row<'_, T>| match pass.options.cap {
        None => pass.work::<T, false>(set, row),
        Some(_) => pass.work::<T, true>(set, row),
    };
    #[cfg(feature = "rayon")]
    if rows.len().saturating_mul(pass.options.cols) >= PARALLEL_FROM {
        use rayon::prelude::*;
        rows.par_iter_mut().for_each(work);
        return rows.iter().map(|row| row.stats).collect();
    }
    rows.iter_mut().for_each(work);
    rows.iter().map(|row| row.stats).collect()
}

impl Pass {
    fn work<T: Element, const CAP: bool>(&self, set: InstructionSet, row: &mut Row<'_, T>) {
        let Pass { options, .. } = *self;
        let target = row.target;
        if self.find_stats {
            row.stats = if options.has_loss(target.status) {
                set.run(Stats::<T, CAP> {
                    logits: &row.logits.unwrap_or(row.dlogits)[..options.cols],
                    target: target.column,
                    options,
                })
            } else {
                NO_STATS
            };
        }
        if row.dlogits.is_empty() {
            return;
        }
        let (classes, padding) = row.dlogits.split_at_mut(options.cols);
        padding.fill(T::narrow(0.0));
        match target.status {
            RowStatus::Masked | RowStatus::Dropped => classes.fill(T::narrow(0.0)),
            RowStatus::Bad => classes.fill(T::narrow(f32::NAN)),
            RowStatus::Kept => set.run(Gradient::<T, CAP> {
                logits: row.logits.map(|logits| &logits[..options.cols]),
                dlogits: classes,
                target: target.column,
                cap: options.cap,
                row: RowGradient::new(&options, &row.stats, target.upstream),
            }),
        }
    }
}

/// e^z / 2ⁿ, or 0 if that is subnormal.
#[inline(always)]
fn exp(base: Base, z: f32) -> f32 {
    let t = base.exponent(z);
    exp2(if t < -127.0 { -127.0 } else { t })
}

/// The logit after the softcap, and the slope of the softcap.
#[inline(always)]
fn at<const CAP: bool>(cap: Option<Softcap>, z: f32) -> (f32, f32) {
    match cap {
        Some(cap) if CAP => cap.at(z),
        _ => (z, 1.0),
    }
}

/// The largest element of a block, ignoring NaN.
#[inline(always)]
fn max_of(Block(z): &Block) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for group in z.as_chunks::<LANES>().0 {
        for (max, &z) in lanes.iter_mut().zip(group) {
            *max = if z > *max { z } else { *max };
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            let (a, b) = (lanes[i], lanes[i + half]);
            lanes[i] = if b > a { b } else { a };
        }
        half /= 2;
    }
    lanes[0]
}

/// The stats of a row.
struct Stats<'a, T, const CAP: bool> {
    /// The logits of the classes.
    logits: &'a [T],
    /// The column of the target. Its exponential is kept out of the sum. In a row with p near 1 the exponentials of the
    /// other logits are relative to the largest of them, so that their exponents are not rounded.
    target: Option<usize>,
    options: Options,
}

impl<T: Element, const CAP: bool> Task for Stats<'_, T, CAP> {
    type Output = RowStats;

    #[inline(always)]
    fn run(self) -> RowStats {
        /// When an exponent exceeds this, the sum is rescaled to a larger power of two. With real logits this happens a few
        /// times in a row. Exponents below 4 have a rounding error of 2⁻²⁴·1.4.
        const HEADROOM: f32 = 4.0;
        let Stats {
            logits,
            target,
            options,
        } = self;
        let Options {
            cap, with_argmax, ..
        } = options;
        let with_sum = options.label_smoothing > 0.0;
        let capped = |z| at::<CAP>(cap, z).0;
        let (mut max, mut first_block) = (f32::NEG_INFINITY, 0);
        let mut base = Base::new(capped(max));
        let mut target_logit = f32::NEG_INFINITY;
        let (mut rest, mut sum) = ([0.0; LANES], [0.0; LANES]);
        let [mut z, mut e] = [Block::ZERO; 2];
        for start in (0..logits.len()).step_by(BLOCK) {
            prefetch(logits, start + AHEAD);
            let block = &logits[start..logits.len().min(start + BLOCK)];
            z.load(block);
            z.0[block.len()..].fill(f32::NEG_INFINITY);
            let apart = target
                .and_then(|target| target.checked_sub(start))
                .filter(|&i| i < block.len());
            if let Some(i) = apart {
                target_logit = z.0[i];
                z.0[i] = f32::NEG_INFINITY;
            }
            let max_of_block = max_of(&z);
            if max_of_block > max {
                (max, first_block) = (max_of_block, start);
                if base.exponent(capped(max)) > HEADROOM {
                    let to = Base::new(capped(max));
                    let factor = base.factor_to(to);
                    rest.iter_mut().for_each(|lane| *lane *= factor);
                    base = to;
                }
            }
            for i in 0..BLOCK {
                if CAP {
                    z.0[i] = capped(z.0[i]);
                }
                e.0[i] = exp(base, z.0[i]);
            }
            let without = |Block(v): &mut Block| {
                v[block.len()..].fill(0.0);
                if let Some(i) = apart {
                    v[i] = 0.0;
                }
            };
            without(&mut e);
            e.add_to(&mut rest);
            if with_sum {
                without(&mut z);
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
            first.map_or(u32::MAX, |at| (options.first_class + at as u64) as u32)
        };
        let factor = base.factor_to(Base::new(capped(all)));
        let of_target = target.map_or(0.0, |_| f64::from(capped(target_logit)));
        RowStats {
            max: all,
            rest: rounded(rest.iter().sum::<f64>() * factor),
            target: f32::narrow(target_logit),
            sum: if with_sum {
                rounded(sum.iter().sum::<f64>() + of_target)
            } else {
                0.0
            },
            argmax: if with_argmax { argmax() } else { u32::MAX },
        }
    }
}

/// The gradient of a kept row.
struct Gradient<'a, T, const CAP: bool> {
    /// The logits of the classes; `None` if they are in `dlogits`.
    logits: Option<&'a [T]>,
    dlogits: &'a mut [T],
    target: Option<usize>,
    cap: Option<Softcap>,
    row: RowGradient,
}

impl<T: Element, const CAP: bool> Task for Gradient<'_, T, CAP> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Gradient {
            logits,
            dlogits,
            target,
            cap,
            row,
        } = self;
        let [mut z, mut d] = [Block::ZERO; 2];
        for start in (0..dlogits.len()).step_by(BLOCK) {
            let range = start..dlogits.len().min(start + BLOCK);
            for tensor in [logits.unwrap_or_default(), dlogits] {
                prefetch(tensor, start + AHEAD);
            }
            z.load(logits.map_or(&dlogits[range.clone()], |logits| &logits[range.clone()]));
            for i in 0..BLOCK {
                let (z, slope) = at::<CAP>(cap, z.0[i]);
                let of_z = exp(row.base, z).mul_add(row.k, -row.offset);
                d.0[i] = if CAP { of_z * slope } else { of_z };
            }
            if let Some(i) = target
                .and_then(|target| target.checked_sub(start))
                .filter(|&i| i < BLOCK)
            {
                d.0[i] = row.target;
            }
            d.store(&mut dlogits[range]);
        }
    }
}
