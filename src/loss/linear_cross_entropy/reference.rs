//! The f64 reference of the head, and the bounds on results of f32 products in any order.

use super::LinearCrossEntropy;
use crate::dtype::{Dtype, Element};
use crate::loss::cross_entropy::Row;

/// The label of a row, its weight, and its upstream gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Target {
    /// The row of the weights that is the label's.
    pub class: usize,
    /// The weight of the row.
    pub weight: f64,
    /// The gradient with respect to the weighted loss: dloss/normalizer.
    pub upstream: f64,
}

impl Target {
    /// A label with a weight and an upstream gradient.
    pub fn new(class: usize, weight: f64, upstream: f64) -> Target {
        Target {
            class,
            weight,
            upstream,
        }
    }
}

/// The results of the head in f64, with bounds on the errors of a backend's results before they are rounded to their type.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// The loss, lse and gradients of each row that has a target, with bounds that include the errors of its logits.
    pub rows: Vec<Option<Row>>,
    /// The gradient with respect to the hidden states, `[N, H]`; 0 in a row without a target.
    pub d_hidden: Vec<f64>,
    /// The bound on the error of each element of d_hidden.
    pub d_hidden_bound: Vec<f64>,
    /// The gradient with respect to the weights, `[V, H]`.
    pub d_weight: Vec<f64>,
    /// The bound on the error of each element of d_weight.
    pub d_weight_bound: Vec<f64>,
}

/// The error of an f32 addition that truncates, relative to its result. Tensor cores truncate when they align terms.
const OF_ADDITION: f64 = 1.0 / (1u64 << 23) as f64;

/// The largest error of rounding `value` to `dtype`.
fn rounding(dtype: Dtype, value: f64) -> f64 {
    let (digits, least) = match dtype {
        Dtype::F32 => (24, -149),
        Dtype::F16 => (11, -24),
        Dtype::Bf16 => (8, -133),
    };
    value.abs() * 2f64.powi(-digits) + 2f64.powi(least - 1)
}

/// Σ a·b and Σ |a·b|.
fn dot(pairs: impl Iterator<Item = (f64, f64)>) -> (f64, f64) {
    pairs.fold((0.0, 0.0), |(sum, magnitudes), (a, b)| {
        (sum + a * b, magnitudes + (a * b).abs())
    })
}

impl LinearCrossEntropy {
    /// The f64 reference of the head on `hidden`, `[N, H]`, and `weight`, `[V, H]`, where V is the number of classes. A masked
    /// row has no target. `cols` is H.
    ///
    /// # Panics
    /// If the lengths of the tensors are not N·H and a multiple of H, if H is 0, or if a class is not one of V.
    pub fn evaluate<T: Element>(
        &self,
        hidden: &[T],
        weight: &[T],
        cols: usize,
        targets: &[Option<Target>],
    ) -> Evaluation {
        assert_eq!(hidden.len(), targets.len() * cols);
        assert!(weight.len().is_multiple_of(cols));
        let f64s = |values: &[T]| -> Vec<f64> { values.iter().map(|v| v.to_f64()).collect() };
        let (hidden, weight) = (f64s(hidden), f64s(weight));
        let (x, w) = (hidden.chunks(cols), weight.chunks(cols));
        let (classes, dtype) = (w.len(), self.logits_dtype(T::DTYPE));
        let (mut d_hidden, mut d_hidden_bound) = (vec![0.0; hidden.len()], vec![0.0; hidden.len()]);
        let (mut d_weight, mut d_weight_bound) = (vec![0.0; weight.len()], vec![0.0; weight.len()]);
        let mut rows = Vec::new();
        let count = targets.iter().flatten().count();
        for (r, (x, target)) in x.zip(targets).enumerate() {
            let Some(target) = target else {
                rows.push(None);
                continue;
            };
            let products = w
                .clone()
                .map(|w| dot(x.iter().copied().zip(w.iter().copied())));
            let (z, magnitudes): (Vec<f64>, Vec<f64>) = products.unzip();
            let errors = z.iter().zip(&magnitudes).map(|(&z, magnitude)| {
                let of_product = cols as f64 * OF_ADDITION * magnitude;
                of_product + rounding(dtype, z.abs() + of_product)
            });
            let errors: Vec<f64> = errors.collect();
            let row = self.row(&z, &errors, target);
            let of_sums = OF_ADDITION * classes as f64;
            for (j, (&dz, bound)) in row.dlogits.iter().zip(&row.dlogits_bound).enumerate() {
                let bound = bound + rounding(dtype, dz.abs() + bound);
                for h in 0..cols {
                    let (x, w) = (x[h], weight[j * cols + h]);
                    d_hidden[r * cols + h] += dz * w;
                    d_hidden_bound[r * cols + h] +=
                        bound * w.abs() + of_sums * (dz.abs() + bound) * w.abs();
                    d_weight[j * cols + h] += dz * x;
                    d_weight_bound[j * cols + h] +=
                        bound * x.abs() + OF_ADDITION * count as f64 * (dz.abs() + bound) * x.abs();
                }
            }
            rows.push(Some(row));
        }
        Evaluation {
            rows,
            d_hidden,
            d_hidden_bound,
            d_weight,
            d_weight_bound,
        }
    }

    /// A row of cross-entropy whose bounds also hold where each logit has an error of up to `errors`.
    ///
    /// With m the largest error: lse changes by at most m, as its gradient sums to 1; every p_j and every 1 − p_j by a factor
    /// of at most e^2m; and cap′ by at most 0.77·m/c.
    fn row(&self, z: &[f64], errors: &[f64], target: &Target) -> Row {
        let loss = &self.loss;
        let mut row = loss.evaluate(z, target.class, target.weight, target.upstream);
        let m = errors.iter().fold(0.0, |m: f64, &e| m.max(e));
        let factor = (2.0 * m).exp();
        let [smoothing, lambda] = [loss.label_smoothing, loss.z_loss].map(f64::from);
        let cap = |z: f64| match loss.softcap.map(f64::from) {
            Some(cap) => (
                cap * (z / cap).tanh(),
                (z / cap).cosh().powi(-2),
                0.77 / cap,
            ),
            None => (z, 1.0, 0.0),
        };
        let p = |j: usize| (cap(z[j]).0 - row.lse).exp();
        let others: f64 = (0..z.len()).filter(|&j| j != target.class).map(p).sum();
        // log(1 + Σ e^(z_j − z_t)) of the other classes; its slope is 1 − p_t.
        let of_target = errors[target.class] + m;
        let of_loss = (1.0 - smoothing) * of_target * (others * of_target.exp()).min(1.0)
            + smoothing * 2.0 * m
            + lambda * (2.0 * row.lse.abs() + m) * m;
        // The bounds of the f32 arithmetic are those at other logits, which differ by this factor.
        let (of_arithmetic, g) = (factor * (1.0 + 2.0 * m), target.weight * target.upstream);
        let mut bounds = Vec::new();
        for (j, &bound) in row.dlogits_bound.iter().enumerate() {
            let (_, slope, of_slope) = cap(z[j]);
            let (of_class, even) = match j == target.class {
                true => (others, smoothing),
                false => (p(j), smoothing / z.len() as f64),
            };
            let of_p = (factor - 1.0) * of_class;
            let of_value =
                of_p * (1.0 + 2.0 * lambda * row.lse.abs()) + 2.0 * lambda * m * (p(j) + of_p);
            let value = of_class + 2.0 * lambda * row.lse.abs() * p(j) + even;
            let of_slope = of_slope * m;
            let of_logits = of_value * (slope + of_slope) + value * of_slope;
            bounds.push(bound * of_arithmetic + g.abs() * of_logits);
        }
        row.dlogits_bound = bounds;
        row.loss_bound = row.loss_bound * of_arithmetic + target.weight.abs() * of_loss;
        row.lse_bound = row.lse_bound * of_arithmetic + m;
        row
    }
}
