//! The traits of activations and their f64 references.

use std::any::Any;
use std::fmt::Debug;

use crate::blocks::ActivationArgs;
use crate::error::{Result, check_length};

/// The maximum number of trainable scalars of an activation.
pub const MAX_PARAMS: usize = 3;

/// The order of a gated form y = g(x)·v of an activation f(x) = x·G(x).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// y = G(x)·v.
    First,
    /// y = f(x)·v.
    Second,
}

impl Order {
    /// Both orders.
    pub const ALL: [Order; 2] = [Order::First, Order::Second];
}

/// The name of an op, the names of its parameters, and whether it has gated forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Signature {
    /// The name of the op, such as `xielu`. Its files and kernel entries have this stem.
    pub name: &'static str,
    /// The names of the trainable scalars, such as `alpha_p`.
    pub params: &'static [&'static str],
    /// The names of the gradients of `params`, in the same order, such as `dalpha_p`.
    pub gradients: &'static [&'static str],
    /// The number of scalars at the end of `params` that a call may leave out. The options of the op then give their values.
    pub optional: usize,
    /// Whether the op has gated forms.
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

    /// Fails unless the op takes `given` scalars.
    pub(crate) fn check_params(&self, given: usize) -> Result<()> {
        check_length("params", self.nearest_count(given), given)
    }

    /// Fails unless a call with `params` scalars, a number that is already checked, may have `given` gradients: one for each
    /// scalar, where those of optional scalars may be left out.
    pub(crate) fn check_gradients(&self, params: usize, given: usize) -> Result<()> {
        check_length("dparams", self.nearest_count(given).min(params), given)
    }

    /// The allowed number of scalars that is nearest to `given`.
    fn nearest_count(&self, given: usize) -> usize {
        let most = self.params.len();
        given.clamp(most - self.optional, most)
    }
}

/// A value and the largest addend of the sum that gives it. Rounding errors are proportional to the addends, so the bounds
/// are in ulp of `max(|value|, largest_addend)`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Term {
    /// The value.
    pub value: f64,
    /// The largest magnitude among the addends.
    pub largest_addend: f64,
}

/// The values of f, f′ and ∂f/∂p at one x, in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Evaluation {
    /// f(x).
    pub y: Term,
    /// f′(x).
    pub slope: Term,
    /// ∂f/∂p for each of [`Signature::params`], to be multiplied by [`Activation::chain`]. Unused places are 0.
    pub dparams: [f64; MAX_PARAMS],
    /// The sum of the magnitudes of the addends of each of `dparams`, to which the errors of the kernels are proportional.
    pub dparam_addends: [f64; MAX_PARAMS],
}

pub(crate) mod sealed {
    use super::*;

    /// The part of an activation that only this crate implements, for its back ends.
    pub trait Op {
        /// The op inside an [`AnyActivation`](crate::AnyActivation); for other types the op itself.
        fn concrete(&self) -> &dyn Any;

        /// Sets the options of the op in the parameter block of its kernels.
        // Not called without `cuda`.
        #[allow(dead_code)]
        fn set_options(&self, args: &mut ActivationArgs) {
            let _ = args;
        }
    }
}

/// An activation with trainable scalars, and its f64 reference. The trait is sealed: the ops of this crate implement it, and
/// so does [`AnyActivation`](crate::AnyActivation).
///
/// The kernels and the CPU backend compute it for f32, f16 and bf16 tensors of any length and alignment. Arithmetic is f32,
/// rounded once at the store. f′(x) is computed in f32 too: where it exceeds 3.4e38 (for example xIELU at x = 3e38), dx is
/// ±inf, or NaN if dy = 0.
///
/// Each parameter is one element, f32 or of the type of x. Parameter gradients are f32. Under tensor parallelism they are
/// the partial sums of one rank, and the caller adds them over the ranks.
///
/// On one device model, the same input at the same alignment (modulo 16 bytes) gives the same bits, whatever the grid, the
/// stream or the load.
pub trait Activation: sealed::Op + Debug + Send + Sync {
    /// Returns the names of the op and of its parameters, and whether it has gated forms.
    fn signature(&self) -> &'static Signature;

    /// The f64 reference: returns f, f′ and ∂f/∂p at `x`. `params` are in the order of [`Signature::params`], raw or
    /// effective as the options of the op say.
    ///
    /// # Panics
    /// If the number of `params` is not one that the op takes.
    fn evaluate(&self, params: &[f64], x: f64) -> Evaluation;

    /// Returns the factor that turns Σ dy·∂f/∂p into the gradient of the stored parameter: softplus′ for raw parameters,
    /// otherwise 1.
    ///
    /// # Panics
    /// If the number of `params` is not one that the op takes.
    fn chain(&self, params: &[f64]) -> [f64; MAX_PARAMS];

    /// Returns the relative error, in units of 2⁻²³, that a kernel may make when it computes the parameters of the formula
    /// from the stored ones: 4 for raw parameters (a softplus), otherwise 0.
    fn parameter_ulps(&self) -> f64 {
        0.0
    }
}

/// An activation f(x) = x·G(x) with gated forms: y = G(x)·v (order 1) and y = f(x)·v (order 2). x is the gate and v the
/// value. They are two tensors, or in one `[rows, 2·n]` tensor as its halves or in turn, in either order.
///
/// G(x), f(x) and dy·v are computed in f32: where |f(x)| exceeds 3.4e38, y is ±inf (NaN if v = 0), even if the product
/// would fit into the type.
pub trait Gated: Activation {
    /// The f64 reference of the gate: returns G, G′ and ∂G/∂p at `x`.
    ///
    /// # Panics
    /// As [`evaluate`](Activation::evaluate).
    fn evaluate_gate(&self, params: &[f64], x: f64) -> Evaluation;

    /// The f64 reference of g in y = g(x)·v, which is G for order 1 and f for order 2: returns g, g′ and ∂g/∂p at `x`.
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

/// The values of a gate g at ±u.
#[derive(Clone, Copy, Debug)]
pub struct Tail {
    /// g(−u), computed without cancellation.
    pub t: f64,
    /// u·g(−u), or its limit at u = inf.
    pub ut: f64,
    /// g′(u).
    pub density: f64,
    /// g(−u) − u·g′(u), which keeps its digits where both fall alike.
    pub curve: f64,
    /// 2·g(u) − 1, computed without cancellation.
    pub h: f64,
}

/// Options and parameters with which the tests run an activation.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<A> {
    /// The name of the sample: `initial`, `trained`, or what makes it difficult.
    pub name: &'static str,
    /// The options.
    pub op: A,
    /// The parameters, in the order of [`Signature::params`].
    pub params: Vec<f32>,
}

/// The entry of an op in the registry.
pub trait Named {
    /// The value that [`Activation::signature`] returns.
    const SIGNATURE: Signature;
    /// The op's name.
    const NAME: &'static str = Self::SIGNATURE.name;
}

/// An op of the registry, with what the tests of this crate need of it.
pub trait Registered: Activation + Named + Copy + Default + 'static {
    /// The values of |x| at which the kernel or the CPU backend switches to another formula.
    const SWITCH_OVERS: &'static [f64];

    /// The gate at ±u and its relative error in f64, for the comparison with an oracle of more digits. `None` if the op has
    /// no expanded gate.
    fn gate(u: f64) -> Option<(Tail, f64)> {
        let _ = u;
        None
    }

    /// The options and parameters that the tests use: initial values, values of published checkpoints, and adversarial
    /// values.
    fn samples() -> Vec<Sample<Self>>;

    /// Returns the stored parameters, in f64, that give exactly the formula's parameters that a kernel computes from
    /// `params`. It measures them with `run`, which computes f(x) in f32 for an op, its parameters and x. The bounds on y
    /// and dx hold at these parameters; their own error has a separate bound.
    fn measured(&self, params: &[f32], run: &mut dyn FnMut(&Self, &[f32], f32) -> f32) -> Vec<f64> {
        let _ = run;
        params.iter().map(|&p| f64::from(p)).collect()
    }
}
