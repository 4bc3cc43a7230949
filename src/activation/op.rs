//! What an activation is.

use std::any::Any;
use std::fmt::Debug;

use crate::blocks::ActivationArgs;
use crate::error::{Result, check_length};

/// The most trainable scalars that an activation has.
pub const MAX_PARAMS: usize = 3;

/// How a gated activation uses its gate: y = g(x)·v.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// g = G, the gate alone, with f(x) = x·G(x).
    First,
    /// g = f.
    Second,
}

impl Order {
    /// Both.
    pub const ALL: [Order; 2] = [Order::First, Order::Second];
}

/// The names that an op is known by, and how it may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Signature {
    /// The op's name: stem of its files and kernel entries.
    pub name: &'static str,
    /// The names of the trainable scalars.
    pub params: &'static [&'static str],
    /// The names of their gradients, in the same order.
    pub gradients: &'static [&'static str],
    /// How many of the scalars, at the end, may be left out: the op's options then hold their values.
    pub optional: usize,
    /// Whether it has gated forms.
    pub gated: bool,
}

impl Signature {
    pub(crate) const fn new(
        name: &'static str,
        params: &'static [&'static str],
        gradients: &'static [&'static str],
        optional: usize,
        gated: bool,
    ) -> Signature {
        assert!(params.len() <= MAX_PARAMS && optional <= params.len());
        Signature {
            name,
            params,
            gradients,
            optional,
            gated,
        }
    }

    /// Fails unless the op takes so many scalars.
    pub(crate) fn check_params(&self, given: usize) -> Result<()> {
        check_length("params", self.nearest_count(given), given)
    }

    /// Fails unless a call with so many scalars, which are checked, has so many gradients: one for each; those of
    /// optional ones may be left out.
    pub(crate) fn check_gradients(&self, params: usize, given: usize) -> Result<()> {
        check_length("dparams", self.nearest_count(given).min(params), given)
    }

    /// The number of scalars, if so many were given, or the nearest that the op takes.
    fn nearest_count(&self, given: usize) -> usize {
        let most = self.params.len();
        given.clamp(most - self.optional, most)
    }
}

/// A value and the largest addend of the formula it comes from. Rounding errors are proportional to
/// the addends, so accuracy is measured against `max(|value|, largest_addend)`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Term {
    /// The value.
    pub value: f64,
    /// Largest magnitude among the addends.
    pub largest_addend: f64,
}

/// Everything about an activation at one point, in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// f(x).
    pub y: Term,
    /// f′(x).
    pub slope: Term,
    /// ∂f/∂p for each of [`Signature::params`], before [`Activation::chain`]; unused places are 0.
    pub dparams: [f64; MAX_PARAMS],
}

pub(crate) mod sealed {
    use super::*;

    /// What only this crate implements, and what the back ends need to know of an op.
    pub trait Op {
        /// The op behind an [`AnyActivation`](crate::AnyActivation); else the op itself.
        fn concrete(&self) -> &dyn Any;

        /// Fills the fields of the kernels' parameter block that are the op's own.
        // Without `cuda` nobody asks.
        #[allow(dead_code)]
        fn set_options(&self, args: &mut ActivationArgs) {
            let _ = args;
        }
    }
}

/// An activation with trainable scalars. Implemented by this crate's ops, and by
/// [`AnyActivation`](crate::AnyActivation), one of them whose type is not known.
///
/// Tensors are f32, f16 or bf16, of any length and alignment; arithmetic is f32, rounded once at the store.
/// f′(x) too is formed in f32: where it exceeds 3.4e38 (xIELU at x = 3e38, say), dx is ±inf, and NaN for dy = 0.
/// Parameters are single elements, f32 or of the type of x; parameter gradients are f32. Under tensor parallelism
/// they are the partial sums of a rank, still to be added over the ranks.
///
/// The same input at the same alignment (modulo 16 bytes) gives the same bits on one device model,
/// whatever the grid, the stream or the load.
pub trait Activation: sealed::Op + Debug + Send + Sync {
    /// Its name, its parameters and its forms.
    fn signature(&self) -> &'static Signature;

    /// The reference: f, f′ and ∂f/∂p at `x`, in f64, for `params` in the order of [`Signature::params`] and in the
    /// form that the op's options name (raw or effective).
    ///
    /// # Panics
    /// If `params` does not have one value for each parameter that is not optional.
    fn evaluate(&self, params: &[f64], x: f64) -> Evaluation;

    /// The factor from Σ dy·∂f/∂p to the gradient of the parameter as it is stored: softplus′ for raw
    /// parameters, else 1.
    ///
    /// # Panics
    /// If `params` does not have one value for each parameter that is not optional.
    fn chain(&self, params: &[f64]) -> [f64; MAX_PARAMS];

    /// Relative error in units of 2⁻²³ that a kernel may have made in turning the stored parameters
    /// into those of the formula: 4 ulp of a softplus, or 0.
    fn parameter_ulps(&self) -> f64 {
        0.0
    }
}

/// An activation f(x) = x·G(x) that can also gate a second input v, the value: y = G(x)·v (order 1) or
/// y = f(x)·v (order 2). Gate and value are two tensors, or the halves of one `[rows, 2·n]`, in either order.
///
/// G(x), f(x) and dy·v are formed in f32: where |f(x)| exceeds 3.4e38, y is ±inf (NaN for v = 0) even if the
/// product would fit.
pub trait Gated: Activation {
    /// The reference of the gate: G, G′ and ∂G/∂p at `x`, in f64.
    ///
    /// # Panics
    /// As [`evaluate`](Activation::evaluate).
    fn evaluate_gate(&self, params: &[f64], x: f64) -> Evaluation;

    /// The reference of g: G or f.
    ///
    /// # Panics
    /// As [`evaluate`](Activation::evaluate).
    fn evaluate_order(&self, order: Order, params: &[f64], x: f64) -> Evaluation {
        match order {
            Order::First => self.evaluate_gate(params, x),
            Order::Second => self.evaluate(params, x),
        }
    }
}

/// A gate at ±u.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    /// g(−u), with all its digits.
    pub t: f64,
    /// u·g(−u); its limit at infinity.
    pub ut: f64,
    /// g′(u).
    pub density: f64,
    /// 2·g(u) − 1, with all its digits.
    pub h: f64,
}

/// Options and parameters with which an activation is worth testing.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<A> {
    /// What is special about them: `initial`, `trained`, or what makes them hard.
    pub name: &'static str,
    /// The options.
    pub op: A,
    /// The parameters, in the order of [`Signature::params`].
    pub params: Vec<f32>,
}

/// What the registry says of an op.
pub trait Named {
    /// What [`Activation::signature`] returns.
    const SIGNATURE: Signature;
    /// The op's name.
    const NAME: &'static str = Self::SIGNATURE.name;
}

/// An op of the registry, as this crate's own suites see it.
pub trait Registered: Activation + Named + Copy + Default + 'static {
    /// Where kernel or CPU change from one formula to another, in |x|.
    const SWITCH_OVERS: &'static [f64];

    /// The gate at ±u, if the op is an expanded one, and the relative error that f64 makes of it: for the comparison with
    /// an oracle of more digits.
    fn gate(u: f64) -> Option<(Tail, f64)> {
        let _ = u;
        None
    }

    /// The options and parameters that the suites run with: initial values, values of published checkpoints,
    /// adversarial ones.
    fn samples() -> Vec<Sample<Self>>;

    /// The stored parameters in f64 for which the formula's parameters are exactly what a kernel makes of
    /// `params`. It asks the kernel, through `run`, which computes f(x) in f32 for an op, its parameters
    /// and x. The accuracy bounds are for y and dx at those; how well they are computed is another bound.
    fn measured(&self, params: &[f32], run: &mut dyn FnMut(&Self, &[f32], f32) -> f32) -> Vec<f64> {
        let _ = run;
        params.iter().map(|&p| f64::from(p)).collect()
    }
}
