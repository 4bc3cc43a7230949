//! The activations with an expanded gate: [`Xatlu`](super::Xatlu), [`Xgelu`](super::Xgelu) and
//! [`Xsilu`](super::Xsilu) share the formulas of this module.
//!
//! Source: Huang, *Expanded Gating Ranges Improve Activation Functions*, arXiv 2405.20768. A gate g rises from 0
//! to 1 with g(−x) = 1 − g(x). One trainable scalar α, initially 0, expands the range of the gate to (−α, 1 + α):
//!
//! ```text
//! G(x) = (1 + 2α)·g(x) − α        f(x) = x·G(x)
//! f′   = G + (1 + 2α)·x·g′        ∂G/∂α = 2·g − 1        ∂f/∂α = x·(2·g − 1)
//! ```
//!
//! α is unconstrained: −1, −½ (where f = x/2) and large values are legal.
//!
//! Special values:
//! - f(±0) = ±0, and f(NaN) = NaN;
//! - f(+inf) = +inf for α > −1, and f(−inf) = ±inf for α ≠ 0, with the sign of α;
//! - where the linear part vanishes (α = 0 at −inf, α = −1 at +inf), f is the limit of the other part;
//! - f′(+inf) = 1 + α, and f′(−inf) = −α.

use std::any::Any;

use super::op::{
    Activation, Evaluation, Gated, MAX_PARAMS, Named, Registered, Sample, Signature, Term, sealed,
};

pub use super::op::Tail;

/// The gate of an expanded activation, in f64.
pub trait Gate: Named + Copy + std::fmt::Debug + Default + Send + Sync + 'static {
    /// The values of |x| at which the kernel or the CPU backend switches to another formula.
    #[doc(hidden)]
    const SWITCH_OVERS: &'static [f64];

    /// The relative error of g(−u) and g′(u) in the f64 reference that comes from rounding the argument of an exponential.
    #[doc(hidden)]
    fn argument_error(u: f64) -> f64 {
        let _ = u;
        0.0
    }

    /// Evaluates the gate at u and −u, for u ≥ 0.
    fn tail(u: f64) -> Tail;
}

/// The sum of the addends of a formula, and the largest of them.
#[inline]
fn sum<const N: usize>(addends: [f64; N]) -> Term {
    Term {
        value: addends.iter().sum(),
        largest_addend: addends.iter().fold(0.0, |max, a| a.abs().max(max)),
    }
}

fn alpha(params: &[f64]) -> f64 {
    match *params {
        [alpha] => alpha,
        _ => panic!("an expanded gate has 1 parameter, not {}", params.len()),
    }
}

/// a·b, where 0·inf is 0.
fn product(a: f64, b: f64) -> f64 {
    if a == 0.0 { 0.0 } else { a * b }
}

impl<G: Gate> sealed::Op for G {
    fn concrete(&self) -> &dyn Any {
        self
    }
}

impl<G: Gate> Registered for G {
    const SWITCH_OVERS: &'static [f64] = <G as Gate>::SWITCH_OVERS;

    fn gate(u: f64) -> Option<(Tail, f64)> {
        Some((G::tail(u), G::argument_error(u)))
    }

    fn samples() -> Vec<Sample<Self>> {
        [
            ("initial", 0.0),
            ("trained", 0.3),
            ("negative", -1.0),
            ("constant", -0.5),
            ("steep", 5.0),
            ("faint", -1e-6),
        ]
        .map(|(name, alpha)| Sample {
            name,
            op: G::default(),
            params: vec![alpha],
        })
        .to_vec()
    }
}

impl<G: Gate> Activation for G {
    fn signature(&self) -> &'static Signature {
        &G::SIGNATURE
    }

    fn evaluate(&self, params: &[f64], x: f64) -> Evaluation {
        let alpha = alpha(params);
        let k = 1.0 + 2.0 * alpha;
        let u = x.abs();
        let tail = G::tail(u);
        let Tail {
            t, ut, density, h, ..
        } = tail;
        let bend = if u.is_infinite() {
            0.0
        } else {
            k * u * density
        };
        let (mut y, mut slope) = if x < 0.0 {
            // −0 and not +0, so that the sum keeps the sign of the other addend.
            let linear = if alpha == 0.0 { -0.0 } else { alpha * u };
            (sum([linear, -k * ut]), sum([-alpha, k * t, -bend]))
        } else {
            let linear = if alpha == -1.0 {
                [0.0; 2]
            } else {
                [u, product(alpha, u)]
            };
            // inf + α·inf would be NaN for α < 0; the limit is inf·(1 + α).
            let linear = if u.is_infinite() {
                [product(1.0 + alpha, u), 0.0]
            } else {
                linear
            };
            (
                sum([linear[0], linear[1], -k * ut]),
                sum([1.0, alpha, -k * t, bend]),
            )
        };
        if x == 0.0 {
            y.value = x;
        }
        // The same sum, of which only k·curve is left where α or 1 + α is 0.
        slope.value = if x < 0.0 {
            -alpha + k * tail.curve
        } else {
            1.0 + alpha - k * tail.curve
        };
        // Where the tail underflows f64, the slope keeps the sign of −k·u·g′.
        if slope.value == 0.0 && t == 0.0 && ut == 0.0 {
            slope.value = k * 0f64.copysign(x);
        }
        Evaluation {
            y,
            slope,
            // x·h = ±(u − 2·u·t)
            dparams: [u * h, 0.0, 0.0],
            dparam_addends: [u + 2.0 * ut, 0.0, 0.0],
        }
    }

    fn chain(&self, _params: &[f64]) -> [f64; MAX_PARAMS] {
        [1.0; MAX_PARAMS]
    }
}

impl<G: Gate> Gated for G {
    fn evaluate_gate(&self, params: &[f64], x: f64) -> Evaluation {
        let alpha = alpha(params);
        let k = 1.0 + 2.0 * alpha;
        let Tail { t, density, h, .. } = G::tail(x.abs());
        Evaluation {
            y: if x < 0.0 {
                sum([-alpha, k * t])
            } else {
                sum([1.0, alpha, -k * t])
            },
            slope: sum([k * density]),
            // h = ±(1 − 2·t)
            dparams: [h.copysign(x), 0.0, 0.0],
            dparam_addends: [1.0 + 2.0 * t, 0.0, 0.0],
        }
    }
}
