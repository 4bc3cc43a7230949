//! The f64 reference of cross-entropy, written from the definition and independently of the kernels, and the bounds on f32
//! results.

use super::CrossEntropy;

/// The status of a row: whether it takes part in the loss, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RowStatus {
    /// The label is `ignore_index`, or the weight is 0.
    Masked,
    /// Goldfish drops the row, which would otherwise be kept.
    Dropped,
    /// The label is neither a class nor `ignore_index`.
    Bad,
    /// The row takes part in the loss.
    Kept,
}

/// The results of a row in f64, with bounds on the error of f32 results. A 16-bit gradient may be any value within its
/// bound, rounded once.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// The weighted loss.
    pub loss: f64,
    /// The part of `loss` that is z-loss.
    pub z_loss: f64,
    /// lse = log Σ e^z.
    pub lse: f64,
    /// The class of the largest logit (the first of equal ones), ignoring NaN; `None` if all logits are NaN.
    pub argmax: Option<usize>,
    /// The gradient with respect to each logit.
    pub dlogits: Vec<f64>,
    /// The bound on the error of an f32 loss: 4 ulp of the largest term of lse, and a relative error of 1e-6 where p > ½.
    pub loss_bound: f64,
    /// The bound on the error of an f32 lse: 4 ulp of its largest term. The terms are the largest logit,
    /// log Σ e^(z − max), and the e⁰ = 1 in that sum.
    pub lse_bound: f64,
    /// The bound on the error of each f32 gradient: (8 + |t|)·2⁻²⁴ of its terms, where t is the distance of the logit from
    /// the largest logit, divided by ln 2. A p or a cap′ below about 2⁻¹²⁶, the smallest normal f32, may count as 0.
    pub dlogits_bound: Vec<f64>,
}

/// 2⁻²⁴, half the distance from 1 to the next f32.
const HALF_ULP: f64 = 1.0 / (1u64 << 24) as f64;

/// The distance between neighbouring f32 values at `x`.
fn ulp(x: f64) -> f64 {
    let exponent = if x == 0.0 || !x.is_finite() {
        -126
    } else {
        x.abs().log2().floor() as i32
    };
    2f64.powi(exponent.max(-126) - 23)
}

/// cap(z) and cap′(z). −inf stays −inf, with a slope of 0.
fn capped(cap: Option<f32>, z: f64) -> (f64, f64) {
    let Some(cap) = cap.map(f64::from) else {
        return (z, 1.0);
    };
    if z == f64::NEG_INFINITY {
        return (z, 0.0);
    }
    let tanh = (z / cap).tanh();
    let cosh = (z / cap).cosh();
    (cap * tanh, 1.0 / (cosh * cosh))
}

impl CrossEntropy {
    /// Returns the status of a row with this label and this weight, given whether Goldfish drops it and the number of
    /// classes.
    pub fn row_status(&self, label: i64, weight: f32, dropped: bool, classes: u64) -> RowStatus {
        if label == self.ignore_index || weight == 0.0 {
            RowStatus::Masked
        } else if u64::try_from(label).map_or(true, |label| label >= classes) {
            RowStatus::Bad
        } else if dropped {
            RowStatus::Dropped
        } else {
            RowStatus::Kept
        }
    }

    /// The f64 reference of one kept row. `logits` are the `[V]` logits of all classes, of an element type or f64, `target`
    /// is the index of the label among them, and `upstream` is the gradient with respect to the weighted loss
    /// (dloss/normalizer).
    ///
    /// # Panics
    /// If `target` is not an index of `logits`.
    pub fn evaluate<T: Copy + Into<f64>>(
        &self,
        logits: &[T],
        target: usize,
        weight: f64,
        upstream: f64,
    ) -> Row {
        let raw: Vec<f64> = logits.iter().map(|&z| z.into()).collect();
        let (z, slopes): (Vec<f64>, Vec<f64>) =
            raw.iter().map(|&z| capped(self.softcap, z)).unzip();
        let [smooth, lambda] = [self.label_smoothing, self.z_loss].map(f64::from);
        let classes = z.len() as f64;
        let mut argmax = None;
        for (i, &z) in raw.iter().enumerate() {
            if !z.is_nan() && argmax.is_none_or(|best: usize| z > raw[best]) {
                argmax = Some(i);
            }
        }
        let max = argmax.map_or(f64::NAN, |i| z[i]);
        let exps: Vec<f64> = z.iter().map(|&z| (z - max).exp()).collect();
        let total: f64 = exps.iter().sum();
        // If all logits are −inf, z − max would be NaN, but the sum of the exponentials is 0.
        let lse = if max == f64::NEG_INFINITY {
            max
        } else {
            max + total.ln()
        };
        let others: f64 = (exps.iter().enumerate())
            .filter(|&(j, _)| j != target)
            .map(|(_, e)| e)
            .sum();
        // Near p = 1 the difference of the two logarithms cancels.
        let surprise = if exps[target] > others {
            (others / exps[target]).ln_1p()
        } else {
            lse - z[target]
        };
        let mean = z.iter().sum::<f64>() / classes;
        let mut loss = (1.0 - smooth) * surprise;
        if smooth > 0.0 {
            loss += smooth * (lse - mean);
        }
        let z_loss = if lambda > 0.0 {
            weight * lambda * lse * lse
        } else {
            0.0
        };
        let loss = weight * loss + z_loss;

        // The error of a softcapped logit: a few roundings of tanh, relative to the logit.
        let cap_error = |z: f64| {
            if self.softcap.is_some() && z != f64::NEG_INFINITY {
                8.0 * HALF_ULP * z.abs()
            } else {
                0.0
            }
        };
        let of_lse = max.abs().max(total.ln().abs()).max(1.0);
        let smoothed = if smooth > 0.0 { mean.abs() } else { 0.0 };
        let largest = of_lse.max(surprise.abs()).max(smoothed);
        let lse_bound = 4.0 * ulp(of_lse) + cap_error(max);
        let mut loss_bound = weight.abs()
            * (4.0 * ulp(largest) + 2.0 * cap_error(largest))
            * (1.0 + 2.0 * lambda * lse.abs())
            + 2.0 * ulp(loss);
        if exps[target] > others && smooth == 0.0 && lambda == 0.0 {
            let of_others = (0..z.len())
                .filter(|&j| j != target && exps[j] > 0.0)
                .map(|j| exps[j] / others * cap_error(z[j]));
            let relative = 1e-6 + cap_error(max) + of_others.sum::<f64>();
            loss_bound = loss_bound.min(relative * loss.abs()).max(2.0 * ulp(0.0));
        }

        let g = weight * upstream;
        // Where lse is near −1/(2λ) this sum cancels, and most of its error is that of lse.
        let common = 1.0 + 2.0 * lambda * lse;
        let common_bound = 2.0 * lambda * lse_bound;
        let even = smooth / classes;
        // The relative error of p_j.
        let of_p = |j: usize| {
            let t = (z[j] - max) * std::f64::consts::LOG2_E;
            // Below 2^-150 p_j is 0 in f32 and has no relative error.
            let t = if t > -200.0 { t.abs() } else { 0.0 };
            (8.0 + t) * HALF_ULP + cap_error(z[j]) + cap_error(max)
        };
        // The relative error of cap′, which is an exponential too. Its argument 2|z|/c·log2 e is rounded three times (2/c,
        // the product with |z|, the product with log2 e), and the constant log2 e is off by 0.22 of half an ulp.
        let of_slope = |j: usize| match self.softcap {
            Some(cap) if slopes[j] > 0.0 => {
                (8.0 + 2.0 * 3.22 * (raw[j] / f64::from(cap)).abs()) * HALF_ULP
            }
            _ => 0.0,
        };
        let (mut dlogits, mut dlogits_bound) = (Vec::new(), Vec::new());
        for j in 0..z.len() {
            let p = exps[j] / total;
            let (value, terms, bound) = if j == target {
                let sum = |f: &dyn Fn(usize) -> f64| -> f64 {
                    let rest = (0..z.len()).filter(|&i| i != target);
                    rest.map(|i| exps[i] / total * f(i)).sum()
                };
                let rest = sum(&|_| 1.0);
                let apart = (2.0 * lambda * lse).abs() * p + smooth;
                let value = 2.0 * lambda * lse * p - rest + smooth - even;
                (value, rest + apart, sum(&of_p) + apart * of_p(target))
            } else {
                let terms = (common * p).abs() + even;
                (common * p - even, terms, terms * of_p(j))
            };
            dlogits.push(g * value * slopes[j]);
            let bound = bound + common_bound * p;
            let bound = (g * slopes[j]).abs() * (bound + terms * of_slope(j));
            // The device flushes an exponential below the smallest normal f32 to 0.
            let flushed = f64::from(f32::MIN_POSITIVE) * g.abs();
            let of_slope = self.softcap.map_or(0.0, |_| 4.0 * terms);
            let bound = bound + flushed * (2.0 * common.abs() * slopes[j] + of_slope);
            dlogits_bound.push(bound + 4.0 * g.abs().max(1.0) * ulp(0.0));
        }
        Row {
            loss,
            z_loss,
            lse,
            argmax,
            dlogits,
            loss_bound,
            lse_bound,
            dlogits_bound,
        }
    }
}
