//! The loss in f64, written from its definition and not from the kernels, with the error that a result may have.

use super::CrossEntropy;
use crate::dtype::Element;

/// What becomes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fate {
    /// It does not count: its label is ignored, or its weight is 0.
    Masked,
    /// It would count, had Goldfish not dropped it.
    Dropped,
    /// Its label is no class.
    Bad,
    /// It counts.
    Kept,
}

/// A row in f64. The bounds are those of DESIGN's table for f32 results; a 16-bit gradient is rounded once
/// from what they allow.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The weighted loss.
    pub loss: f64,
    /// The part of it that is z-loss.
    pub z_loss: f64,
    /// log Σ e^z.
    pub lse: f64,
    /// The class of the largest logit, the first of several; `None` if there is none (all are NaN).
    pub argmax: Option<usize>,
    /// The gradient with respect to each logit.
    pub dlogits: Vec<f64>,
    /// How far an f32 loss may be off: 4 ulp of the largest term of lse, and 1e-6 of itself where p > ½.
    pub loss_bound: f64,
    /// How far an f32 lse may be off: 4 ulp of its largest term.
    pub lse_bound: f64,
    /// How far an f32 gradient may be off: (8 + |t|)·2⁻²⁴ of its terms, t being the logit's distance from the
    /// largest in powers of two.
    pub dlogits_bound: Vec<f64>,
}

/// 2⁻²⁴, half the distance from 1 to the next f32.
const HALF_ULP: f64 = 1.0 / (1u64 << 24) as f64;

/// The distance of f32 values at `x`.
fn ulp(x: f64) -> f64 {
    let exponent = if x == 0.0 || !x.is_finite() {
        -126
    } else {
        x.abs().log2().floor() as i32
    };
    2f64.powi(exponent.max(-126) - 23)
}

/// cap(z) and cap′(z).
fn capped(cap: Option<f32>, z: f64) -> (f64, f64) {
    let Some(cap) = cap.map(f64::from) else {
        return (z, 1.0);
    };
    let tanh = (z / cap).tanh();
    let cosh = (z / cap).cosh();
    (cap * tanh, 1.0 / (cosh * cosh))
}

impl CrossEntropy {
    /// What becomes of a row with this label and weight, of `classes` classes.
    pub fn fate(&self, label: i64, weight: f32, dropped: bool, classes: u64) -> Fate {
        if label == self.ignore_index || weight == 0.0 {
            Fate::Masked
        } else if u64::try_from(label).map_or(true, |label| label >= classes) {
            Fate::Bad
        } else if dropped {
            Fate::Dropped
        } else {
            Fate::Kept
        }
    }

    /// The reference of a row that counts. `logits` are those of all classes, `target` is the label's place
    /// among them, `upstream` what the gradient is multiplied with beside the weight (dloss/normalizer).
    ///
    /// # Panics
    /// If `target` is not among the logits.
    pub fn evaluate<T: Element>(
        &self,
        logits: &[T],
        target: usize,
        weight: f64,
        upstream: f64,
    ) -> Row {
        let raw: Vec<f64> = logits.iter().map(|z| z.to_f64()).collect();
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
        let lse = max + total.ln();
        let others: f64 = (exps.iter().enumerate())
            .filter(|&(j, _)| j != target)
            .map(|(_, e)| e)
            .sum();
        // Near p = 1 the difference of two logarithms has no digits left.
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

        // The error of a capped logit: that of tanh, a handful of roundings relative to itself.
        let cap_error = |z: f64| {
            if self.softcap.is_some() {
                8.0 * HALF_ULP * z.abs()
            } else {
                0.0
            }
        };
        let terms = [
            max,
            total.ln(),
            surprise,
            if smooth > 0.0 { mean } else { 0.0 },
        ];
        let largest = terms.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
        let lse_bound = 4.0 * ulp(max.abs().max(total.ln().abs())) + cap_error(max);
        let mut loss_bound = weight.abs()
            * (4.0 * ulp(largest) + 2.0 * cap_error(largest))
            * (1.0 + 2.0 * lambda * lse.abs())
            + 2.0 * ulp(loss);
        if exps[target] > others && smooth == 0.0 && lambda == 0.0 {
            let relative = 1e-6 + 2.0 * cap_error(max);
            loss_bound = loss_bound.min(relative * loss.abs()).max(ulp(0.0));
        }

        let g = weight * upstream;
        let common = 1.0 + 2.0 * lambda * lse;
        let even = smooth / classes;
        // Relative to the terms of element j's gradient.
        let relative = |j: usize| {
            let t = (z[j] - max) * std::f64::consts::LOG2_E;
            // Below 2^-150 there is nothing left to be relative to.
            let t = if t > -200.0 { t.abs() } else { 0.0 };
            let slope = self
                .softcap
                .map_or(0.0, |cap| 8.0 + 4.0 * (raw[j] / f64::from(cap)).abs());
            (8.0 + t + slope) * HALF_ULP + cap_error(z[j]) + cap_error(max)
        };
        let (mut dlogits, mut dlogits_bound) = (Vec::new(), Vec::new());
        for j in 0..z.len() {
            let p = exps[j] / total;
            let (value, bound) = if j == target {
                let terms = |f: &dyn Fn(usize) -> f64| -> f64 {
                    let rest = (0..z.len())
                        .filter(|&i| i != target)
                        .map(|i| exps[i] / total * f(i));
                    rest.sum()
                };
                let rest = terms(&|_| 1.0);
                let value = 2.0 * lambda * lse * p - rest + smooth - even;
                let bound =
                    terms(&relative) + ((2.0 * lambda * lse).abs() * p + smooth) * relative(target);
                (value, bound)
            } else {
                let value = common * p - even;
                (value, ((common * p).abs() + even) * relative(j))
            };
            dlogits.push(g * value * slopes[j]);
            dlogits_bound.push((g * slopes[j]).abs() * bound + g.abs().max(1.0) * ulp(0.0));
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
