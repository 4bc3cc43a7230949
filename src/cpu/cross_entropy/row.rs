//! The loss and the gradient of a row from its stats: the formulas of `kernels/loss/cross_entropy.cu`, in f64.
//!
//! The stats are those of the kernels: exponentials divided by a power of two, 2ⁿ, computed with log2 e rounded to f32. Here
//! they are divided by e^max instead, so that the rounding of that constant affects only distances from the maximum.

use super::super::math::{Expm1, LOG2E};
use crate::blocks::RowStats;
use crate::dtype::Convert;
use crate::loss::CrossEntropy;
use crate::loss::cross_entropy::RowStatus;

/// The base 2ⁿ of the exponentials of a row, as in `kernels/common/softmax.cuh`. n is the integer nearest to max·log2 e. It is
/// the sum of two f32, because one f32 cannot hold all integers beyond 2²⁴.
#[derive(Clone, Copy, Debug)]
pub struct Base {
    /// All of a base that is small.
    pub hi: f32,
    lo: f32,
}

impl Base {
    #[inline(always)]
    pub fn new(max: f32) -> Base {
        // The clamp gives a finite base to logits up to the largest f32. The base of −inf is below that of every other logit.
        let hi = (max * LOG2E).clamp(-f32::MAX, f32::MAX).round_ties_even();
        let lo = if max == f32::NEG_INFINITY {
            -f32::MAX
        } else {
            max.mul_add(LOG2E, -hi).round_ties_even()
        };
        Base { hi, lo }
    }

    /// z·log2 e − n: at most ½ where z is the maximum. A base of +inf gives NaN for +inf.
    #[inline(always)]
    pub fn exponent(self, z: f32) -> f32 {
        z.mul_add(LOG2E, -self.hi) - self.lo
    }

    /// 2^(n − n of `to`), exactly, for an n that is not above that of `to`; 0 if it underflows f64.
    #[inline(always)]
    pub fn factor_to(self, to: Base) -> f64 {
        let [from, to] = [self, to].map(|base| [base.hi, base.lo].map(f64::from));
        let n = ((from[0] - to[0]) + (from[1] - to[1])).clamp(-1022.0, 0.0);
        f64::from_bits(((n as i64 + 1023) as u64) << 52)
    }
}

/// The softcap c·tanh(z/c). −inf stays −inf, with a slope of 0. With m = expm1(−2|z|/c): tanh = −m/(m + 2) and
/// 1 − tanh² = 4(m + 1)/(m + 2)².
#[derive(Clone, Copy, Debug)]
pub struct Softcap {
    cap: f32,
    two_over_cap: f32,
}

impl Softcap {
    pub fn new(cap: f32) -> Softcap {
        Softcap {
            cap,
            two_over_cap: 2.0 / cap,
        }
    }

    /// cap(z) and cap′(z).
    #[inline(always)]
    pub fn at(self, z: f32) -> (f32, f32) {
        let e = Expm1::new(-z.abs() * self.two_over_cap);
        let m = e.expm1();
        let r = 1.0 / (m + 2.0);
        let value = (self.cap * (-m * r)).copysign(z);
        let value = if z == f32::NEG_INFINITY { z } else { value };
        let exp = if e.near { m + 1.0 } else { e.exp };
        (value, 4.0 * exp * r * r)
    }
}

/// [`Softcap::at`], or z itself.
pub fn capped(cap: Option<Softcap>, z: f32) -> (f32, f32) {
    cap.map_or((z, 1.0), |cap| cap.at(z))
}

/// The stats of a row that is not read.
pub const NO_STATS: RowStats = RowStats {
    max: f32::NEG_INFINITY,
    rest: 0.0,
    target: f32::NEG_INFINITY,
    sum: 0.0,
    argmax: u32::MAX,
};

/// Rounds to f32. Every NaN becomes the same NaN, as in tensors.
pub fn rounded(value: f64) -> f32 {
    f32::narrow(value as f32)
}

/// The stats of a part of a row. The sums of a rank are rounded to f32, and those of the parts within a row are not.
#[derive(Clone, Copy, Debug)]
pub struct PartStats {
    pub max: f32,
    pub rest: f64,
    pub target: f32,
    pub sum: f64,
    pub argmax: u32,
}

impl From<RowStats> for PartStats {
    fn from(of_rank: RowStats) -> PartStats {
        PartStats {
            max: of_rank.max,
            rest: of_rank.rest.into(),
            target: of_rank.target,
            sum: of_rank.sum.into(),
            argmax: of_rank.argmax,
        }
    }
}

/// The stats of a row, merged from those of its parts in their order.
pub fn merged(cap: Option<Softcap>, parts: impl Iterator<Item = PartStats> + Clone) -> RowStats {
    let mut all = NO_STATS;
    for part in parts.clone() {
        if part.max > all.max || (part.max == all.max && part.argmax < all.argmax) {
            (all.max, all.argmax) = (part.max, part.argmax);
        }
        // The target may be NaN.
        if part.target != f32::NEG_INFINITY {
            all.target = part.target;
        }
    }
    let base_of = |max| Base::new(capped(cap, max).0);
    let base = base_of(all.max);
    let (mut rest, mut sum) = (0.0, 0.0);
    for part in parts {
        rest += part.rest * base_of(part.max).factor_to(base);
        sum += part.sum;
    }
    (all.rest, all.sum) = (rounded(rest), rounded(sum));
    all
}

/// The label, the weight and the status of a row.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub status: RowStatus,
    pub weight: f32,
    /// The label, and its column if this rank has it.
    pub class: u64,
    pub column: Option<usize>,
    /// The gradient with respect to the loss without its weight: weight·dloss/normalizer.
    pub upstream: f64,
}

/// The options of a call in the form that the rows need.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub cap: Option<Softcap>,
    pub label_smoothing: f64,
    pub z_loss: f64,
    /// The number of classes of all ranks.
    pub classes: u64,
    /// The class of column 0.
    pub first_class: u64,
    /// The number of columns that are classes.
    pub cols: usize,
    pub with_argmax: bool,
    pub dropped_loss: bool,
}

impl Options {
    pub fn new(op: &CrossEntropy, classes: u64, first_class: u64, cols: usize) -> Options {
        Options {
            cap: op.softcap.map(Softcap::new),
            label_smoothing: op.label_smoothing.into(),
            z_loss: op.z_loss.into(),
            classes,
            first_class,
            cols,
            with_argmax: false,
            dropped_loss: op.dropped_loss,
        }
    }

    /// Whether the logits of a row are needed for its loss.
    pub fn has_loss(&self, status: RowStatus) -> bool {
        status == RowStatus::Kept || (status == RowStatus::Dropped && self.dropped_loss)
    }
}

/// The weighted loss of a row.
#[derive(Clone, Copy, Debug)]
pub struct RowLoss {
    pub loss: f64,
    /// The part of the loss that is z-loss.
    pub z_loss: f64,
    pub lse: f64,
}

/// The sums that the formulas of a row share: divided by e^max, with the target kept apart.
struct Sums {
    /// The factor that turns exponentials of the loops into exponentials divided by e^max.
    scale: f64,
    /// The distance of the target from the maximum, and e^distance.
    distance: f64,
    e_target: f64,
    rest: f64,
    s: f64,
    lse: f64,
}

impl Sums {
    fn new(options: &Options, stats: &RowStats) -> Sums {
        let [max, target] = [stats.max, stats.target].map(|z| capped(options.cap, z).0);
        let scale = f64::from(-Base::new(max).exponent(max)).exp2();
        let [max, target, rest] = [max, target, stats.rest].map(f64::from);
        let nothing = max == f64::NEG_INFINITY && rest == 0.0;
        let rest = rest * scale;
        let distance = target - max;
        let e_target = distance.exp();
        let s = rest + e_target;
        Sums {
            scale,
            distance,
            e_target,
            rest,
            s,
            // If all logits are −inf, only lse is not NaN.
            lse: if nothing { max } else { max + s.ln() },
        }
    }

    /// lse − z_t. Where p_t > ½ it is log1p(rest/e_t), which keeps the digits of a small loss.
    fn surprise(&self) -> f64 {
        if self.e_target > self.rest {
            // The exponents were computed with a rounded log2 e. In a row with p very near 1 this is the largest error of the
            // gap between the target and the other logits.
            const OF_LOG2E: f64 = std::f64::consts::LOG2_E / LOG2E as f64 - 1.0;
            let ratio = self.rest / self.e_target;
            // Without other classes, ln is infinite.
            let gap = ratio.ln().max(-1000.0);
            (ratio * (1.0 + gap * OF_LOG2E)).ln_1p()
        } else {
            self.s.ln() - self.distance
        }
    }
}

impl RowLoss {
    /// The loss of a row that is not read.
    pub const ZERO: RowLoss = RowLoss {
        loss: 0.0,
        z_loss: 0.0,
        lse: 0.0,
    };

    /// The loss of a row whose label is not a class.
    pub const NAN: RowLoss = RowLoss {
        loss: f64::NAN,
        z_loss: f64::NAN,
        lse: f64::NAN,
    };

    pub fn new(options: &Options, stats: &RowStats, weight: f32) -> RowLoss {
        let (sums, weight) = (Sums::new(options, stats), f64::from(weight));
        let lse = sums.lse;
        let smoothing = options.label_smoothing;
        let mut loss = (1.0 - smoothing) * sums.surprise();
        if smoothing > 0.0 {
            loss += smoothing * (lse - f64::from(stats.sum) / options.classes as f64);
        }
        let z_loss = if options.z_loss > 0.0 {
            weight * options.z_loss * lse * lse
        } else {
            0.0
        };
        RowLoss {
            loss: weight * loss + z_loss,
            z_loss,
            lse,
        }
    }
}

/// The constants of a row's gradient: dz_j = (e_j·k − offset)·cap′(z_j) for all columns but the target, where e_j is divided
/// by the base.
#[derive(Clone, Copy, Debug)]
pub struct RowGradient {
    pub base: Base,
    pub k: f32,
    pub offset: f32,
    /// dz_t
    pub target: f32,
}

impl RowGradient {
    pub fn new(options: &Options, stats: &RowStats, upstream: f64) -> RowGradient {
        let sums = Sums::new(options, stats);
        let two_lambda_lse = if options.z_loss > 0.0 {
            2.0 * options.z_loss * sums.lse
        } else {
            0.0
        };
        let smoothing = options.label_smoothing;
        let per_class = smoothing / options.classes as f64;
        let k = upstream * (1.0 + two_lambda_lse) / sums.s * sums.scale;
        let mut target = -sums.rest / sums.s + smoothing - per_class;
        if options.z_loss > 0.0 {
            target += two_lambda_lse * sums.e_target / sums.s;
        }
        let slope = f64::from(capped(options.cap, stats.target).1);
        RowGradient {
            base: Base::new(capped(options.cap, stats.max).0),
            k: k as f32,
            offset: (upstream * per_class) as f32,
            target: (upstream * target * slope) as f32,
        }
    }
}
