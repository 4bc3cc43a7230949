//! The activations with an expanded gate. The formulas are those of `kernels/common/expanded.cuh`.
//!
//! With u = |x| and t = g(−u), the small tail of the gate, the sums of both sides do not cancel:
//!
//! ```text
//! x < 0:  c = −α,      κ = 1 + 2α            G = c + κ·t
//! x ≥ 0:  c = 1 + α,   κ = −(1 + 2α)         f = x·G = ±(c·u + κ·u·t), with the sign of x
//! f′ = c + κ·(t − u·g′(u))                   G′ = (1 + 2α)·g′(u)
//! ∂f/∂α = x·h(x),  ∂G/∂α = h(x),  h = 2g − 1, which is odd
//! ```

use std::marker::PhantomData;

use super::function::{Function, Point};

/// The terms of a gate at u = |x|. Each is accurate relative to its own size (`plus_v` relative to its larger addend). No
/// subnormal intermediate is multiplied, so a subnormal result is rounded once, at the end. The argument k of a method is
/// multiplied by UNIT, a power of two that the gate chooses.
pub trait Tail: Copy + Send + Sync {
    /// The factor of k in the methods.
    const UNIT: f32;
    /// The gate at |x|.
    fn new(x: f32) -> Self;
    /// a + k·t
    fn plus_t(self, a: f32, k: f32) -> f32;
    /// k·u·t
    fn ut(self, k: f32) -> f32;
    /// a + k·(t − u·g′(u))
    fn plus_v(self, a: f32, k: f32) -> f32;
    /// k·g′(u)
    fn slope(self, k: f32) -> f32;
    /// h(u)
    fn h(self) -> f32;
}

/// The values that do not depend on x.
#[derive(Clone, Copy)]
struct Constants {
    alpha: f32,
    one_plus: f32,
    /// (1 + 2α)·UNIT
    k: f32,
}

impl Constants {
    fn new<T: Tail>(params: &[f32]) -> Constants {
        let alpha = params[0];
        Constants {
            alpha,
            one_plus: 1.0 + alpha,
            k: T::UNIT * 2f32.mul_add(alpha, 1.0),
        }
    }

    #[inline(always)]
    fn c(self, x: f32) -> f32 {
        if x < 0.0 { -self.alpha } else { self.one_plus }
    }

    #[inline(always)]
    fn kappa(self, x: f32) -> f32 {
        if x < 0.0 { self.k } else { -self.k }
    }
}

/// The function f.
#[derive(Clone, Copy)]
struct Whole<T>(Constants, PhantomData<T>);

impl<T: Tail> Function for Whole<T> {
    const PARAMS: usize = 1;

    #[inline(always)]
    fn at(self, x: f32, upstream: f32) -> Point {
        let Whole(constants, _) = self;
        let (c, kappa) = (constants.c(x), constants.kappa(x));
        let g = T::new(x);
        // 0·inf would be NaN where the linear part is absent. The sum is +0 at ±0, because c and κ are
        // never both negative.
        let curved = g.ut(kappa);
        let sum = if c == 0.0 {
            curved
        } else {
            c.mul_add(x.abs(), curved)
        };
        Point {
            value: with_sign(sum, x),
            slope: g.plus_v(c, kappa),
            // The product with h(u) ≤ 1 comes first: u·h(u) would be subnormal near 0, and upstream·u could overflow.
            terms: [upstream * g.h() * x.abs(), 0.0, 0.0],
        }
    }
}

/// The function G.
#[derive(Clone, Copy)]
struct GateAlone<T>(Constants, PhantomData<T>);

impl<T: Tail> Function for GateAlone<T> {
    const PARAMS: usize = 1;

    #[inline(always)]
    fn at(self, x: f32, upstream: f32) -> Point {
        let GateAlone(constants, _) = self;
        let g = T::new(x);
        Point {
            value: g.plus_t(constants.c(x), constants.kappa(x)),
            slope: g.slope(constants.k),
            terms: [upstream * g.h().copysign(x), 0.0, 0.0],
        }
    }
}

/// The function f for these parameters.
pub fn whole<T: Tail>(params: &[f32]) -> impl Function {
    Whole::<T>(Constants::new::<T>(params), PhantomData)
}

/// The function G for these parameters.
pub fn gate_alone<T: Tail>(params: &[f32]) -> impl Function {
    GateAlone::<T>(Constants::new::<T>(params), PhantomData)
}

/// a, negated if x is negative.
#[inline(always)]
pub fn with_sign(a: f32, x: f32) -> f32 {
    f32::from_bits(a.to_bits() ^ (x.to_bits() & (1 << 31)))
}

/// The linear part of f at x, as a factor of |x|, and a bound on |x|, for the 16-bit formulas f = |x|·(c − (1 + 2α)·t). The
/// bound is `far` where the linear part is absent, so that f(±inf) is the limit of the other part and not 0·inf.
#[derive(Clone, Copy)]
pub struct Sides {
    pub negative: (f32, f32),
    pub positive: (f32, f32),
}

impl Sides {
    pub fn new(alpha: f32, far: f32) -> Sides {
        let side = |c: f32| (c, if c == 0.0 { far } else { f32::INFINITY });
        Sides {
            // −0, so that c − 0 is −0, and f′(−inf) = +0.
            negative: side(if alpha == 0.0 { -0.0 } else { alpha }),
            positive: side(1.0 + alpha),
        }
    }

    /// Chooses by the sign bit, which keeps f(−0) = −0.
    #[inline(always)]
    pub fn at(self, x: f32) -> (f32, f32) {
        if x.is_sign_negative() {
            self.negative
        } else {
            self.positive
        }
    }
}

/// Implements the CPU backend of an op with this tail and these 16-bit formulas. This is a macro because a generic
/// implementation would be compiled in every crate that uses it.
macro_rules! on_cpu {
    ($Op:ident: $Tail:ident, $Short:ident) => {
        use $crate::activation::MAX_PARAMS;
        use $crate::cpu::call::{AnyCall, Gradients};
        use $crate::cpu::expanded::{gate_alone, whole};

        /// Runs a call with f, plain or gated.
        fn run_whole<const GATED: bool>(params: &[f32], call: AnyCall<'_, GATED>) -> Gradients {
            let short = $Short::<half::f16, 2>::new(params);
            let wide = $Short::<half::bf16, 2>::new(params);
            call.run(whole::<$Tail>(params), short, wide, [1.0; MAX_PARAMS])
        }

        impl $crate::cpu::on_cpu::OnCpu for $crate::$Op {
            fn on_cpu(&self, params: &[f32], call: AnyCall<'_, false>) -> Gradients {
                run_whole(params, call)
            }
        }

        impl $crate::cpu::on_cpu::GatedOnCpu for $crate::$Op {
            fn gated_on_cpu(
                &self,
                order: $crate::Order,
                params: &[f32],
                call: AnyCall<'_, true>,
            ) -> Gradients {
                match order {
                    $crate::Order::First => {
                        let short = $Short::<half::f16, 1>::new(params);
                        let wide = $Short::<half::bf16, 1>::new(params);
                        call.run(gate_alone::<$Tail>(params), short, wide, [1.0; MAX_PARAMS])
                    }
                    $crate::Order::Second => run_whole(params, call),
                }
            }
        }
    };
}
pub(super) use on_cpu;
