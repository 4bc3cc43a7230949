//! xIELU. `kernels/activation/xielu.cu` has the formulas and the special values.
//!
//! Near 0 it computes the q-form `α_n·q(x) + β·x`, which keeps the sign and the digits, and for large |x|
//! `α_n·expm1(x) − s_n·x` with s_n = α_n − β, which does not cancel.

use std::marker::PhantomData;

use half::{bf16, f16};

use super::call::{AnyCall, Gradients};
use super::function::{Function, Point};
use super::math::{Expm1, LOG2E, max, min, softplus};
use super::on_cpu::OnCpu;
use super::short::Short;
use crate::activation::shared::polynomial;
use crate::activation::xielu::{
    NEAR_BF16, NEAR_F16, R0_BF16, R0_F16, R1_BF16, R1_F16, R2_BF16, R2_F16, R3_F16,
};
use crate::activation::{EpsGradient, Parameters, Xielu};

/// The values that do not depend on x.
#[derive(Clone, Copy)]
struct Constants {
    alpha_p: f32,
    alpha_n: f32,
    s_n: f32,
    beta: f32,
    eps: f32,
    raw: bool,
    autograd: bool,
}

impl Constants {
    #[inline(always)]
    fn negative_slope(self, e: Expm1) -> f32 {
        let exp = if e.near { e.expm1() } else { e.exp };
        self.alpha_n
            .mul_add(exp, if e.near { self.beta } else { -self.s_n })
    }

    /// upstream·q(x): upstream·x²·r near 0, without forming x² alone.
    #[inline(always)]
    fn of_q(e: Expm1, x: f32, upstream: f32, r: f32) -> f32 {
        (if e.near { upstream * x } else { upstream }) * (if e.near { x * r } else { e.far - x })
    }
}

/// The usual case: no clamp, and α_p and s_n are not 0. PARAMS is 3 if β is a parameter, otherwise 2.
#[derive(Clone, Copy)]
struct Ideal<const PARAMS: usize>(Constants);

impl<const PARAMS: usize> Function for Ideal<PARAMS> {
    const PARAMS: usize = PARAMS;

    #[inline(always)]
    fn at(self, x: f32, upstream: f32) -> Point {
        let Ideal(p) = self;
        let e = Expm1::new(x);
        let positive = x > 0.0;
        // Near 0 both sides are computed as x·(a·x·r + β), which keeps the sign of zero.
        let a = if positive { p.alpha_p } else { p.alpha_n };
        let r = if positive { 1.0 } else { e.r };
        let near = x * (a * x).mul_add(r, p.beta);
        let far = p.alpha_n.mul_add(e.far, -p.s_n * x);
        let (rising, falling) = ((2.0 * p.alpha_p).mul_add(x, p.beta), p.negative_slope(e));
        let square = Constants::of_q(e, x, upstream, r);
        let expm1 = e.expm1();
        Point {
            value: if e.near { near } else { far },
            slope: if positive { rising } else { falling },
            terms: [
                if positive { square } else { 0.0 },
                if positive { 0.0 } else { square },
                upstream * if positive || !p.raw { x } else { expm1 },
            ],
        }
    }
}

/// All other cases: the clamp, and α_p or s_n of 0, where 0·inf would give NaN.
#[derive(Clone, Copy)]
struct General(Constants);

impl General {
    #[inline(always)]
    fn positive(self, x: f32, upstream: f32) -> Point {
        let General(p) = self;
        let square = if p.alpha_p == 0.0 { 0.0 } else { p.alpha_p * x };
        let rise = (2.0 * p.alpha_p).mul_add(x, p.beta);
        Point {
            value: x * (square + p.beta),
            slope: if p.alpha_p == 0.0 { p.beta } else { rise },
            terms: [upstream * x * x, 0.0, upstream * x],
        }
    }

    #[inline(always)]
    fn negative(self, x: f32, upstream: f32) -> Point {
        let General(p) = self;
        let clamps = x > p.eps;
        let clamped = if clamps { p.eps } else { x };
        let e = Expm1::new(clamped);
        // expm1(min(x, eps)) − x. For the usual eps, both addends are exact or nearly exact.
        let shifted = if e.near {
            e.q() + (clamped - x)
        } else {
            e.far - x
        };
        let q = if clamps { shifted } else { e.q() };
        let of_q = Constants::of_q(e, x, upstream, e.r);
        let linear = if p.s_n == 0.0 { 0.0 } else { -p.s_n * x };
        let near = x * (p.alpha_n * x).mul_add(e.r, p.beta);
        let far = p.alpha_n.mul_add(e.far, linear);
        let ideal = if e.near { near } else { far };
        let analytic = p.negative_slope(e);
        let half = (0.5 * p.alpha_n).mul_add(e.expm1(), (-0.5f32).mul_add(p.alpha_n, p.beta));
        let slope = if p.autograd && clamps {
            -p.s_n
        } else {
            analytic
        };
        Point {
            value: if clamps {
                p.alpha_n.mul_add(q, p.beta * x)
            } else {
                ideal
            },
            slope: if p.autograd && x == p.eps {
                half
            } else {
                slope
            },
            terms: [
                0.0,
                if clamps { upstream * q } else { of_q },
                upstream * if p.raw { e.expm1() } else { x },
            ],
        }
    }
}

impl Function for General {
    const PARAMS: usize = 3;

    #[inline(always)]
    fn at(self, x: f32, upstream: f32) -> Point {
        let (above, below) = (self.positive(x, upstream), self.negative(x, upstream));
        let select = |above: f32, below: f32| if x > 0.0 { above } else { below };
        Point {
            value: select(above.value, below.value),
            slope: select(above.slope, below.slope),
            terms: [
                select(above.terms[0], below.terms[0]),
                select(above.terms[1], below.terms[1]),
                select(above.terms[2], below.terms[2]),
            ],
        }
    }
}

/// The usual case in 16-bit types. `r` is q(x)/x² near 0, where q = expm1(x) − x.
///
/// ```text
/// x > τ:  f = x·(m·x + β),  m = α_p for x > 0, else α_n·r      x ≤ τ:  f = α_n·eˣ − s_n·x − α_n
/// f′ = α_n·expm1(n) + 2α_p·p + β      ∂α_p = p²      ∂α_n = expm1(n) − n,   with n = min(x, 0), p = max(x, 0)
/// ```
///
/// Near 0 expm1(n) = n + n²·r. τ is near 0, because an error of α_n·eˣ has to vanish only beside α_n·x²/2 or β·x. The
/// exponential of bf16 is not good enough for that at a β of 1/8, so bf16 takes that of f16.
#[derive(Clone, Copy)]
struct ShortIdeal<T, const PARAMS: usize>(Constants, PhantomData<T>);

impl<T: Short, const PARAMS: usize> ShortIdeal<T, PARAMS> {
    /// τ
    const NEAR: f32 = if T::WIDE { NEAR_BF16 } else { NEAR_F16 };

    /// r for NEAR < x ≤ 0.
    #[inline(always)]
    fn r(x: f32) -> f32 {
        if T::WIDE {
            polynomial!(x; R2_BF16, R1_BF16, R0_BF16)
        } else {
            polynomial!(x; R3_F16, R2_F16, R1_F16, R0_F16)
        }
    }
}

impl<T: Short, const PARAMS: usize> Function for ShortIdeal<T, PARAMS> {
    const PARAMS: usize = PARAMS;

    #[inline(always)]
    fn at(self, x: f32, upstream: f32) -> Point {
        let ShortIdeal(p, _) = self;
        let positive = if x > 0.0 { x } else { 0.0 };
        let n = min(x, 0.0);
        let small = (n * Self::r(n)).mul_add(n, n);
        let exp = f16::exp2(max(n * LOG2E, -126.0));
        let near = n > Self::NEAR;
        let expm1 = if near { small } else { exp - 1.0 };
        let rise = (2.0 * p.alpha_p).mul_add(positive, p.beta);
        // f′ tends to −s_n, which may be far below the digits of α_n and β.
        let (curve, line) = if near { (small, rise) } else { (exp, -p.s_n) };
        Point {
            value: self.value(x),
            slope: p.alpha_n.mul_add(curve, line),
            terms: [
                upstream * positive * positive,
                upstream * (expm1 - n),
                upstream * if p.raw { positive + expm1 } else { x },
            ],
        }
    }

    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        let ShortIdeal(p, _) = self;
        let m = if x > 0.0 {
            p.alpha_p
        } else {
            p.alpha_n * Self::r(x)
        };
        let near = x * x.mul_add(m, p.beta);
        let far = p.alpha_n.mul_add(
            f16::exp2(max(x * LOG2E, -126.0)),
            (-p.s_n).mul_add(x, -p.alpha_n),
        );
        if x > Self::NEAR { near } else { far }
    }
}

fn ideal<const PARAMS: usize>(
    constants: Constants,
    call: AnyCall<'_, false>,
    chain: Gradients,
) -> Gradients {
    let short = ShortIdeal::<f16, PARAMS>(constants, PhantomData);
    let wide = ShortIdeal::<bf16, PARAMS>(constants, PhantomData);
    call.run(Ideal::<PARAMS>(constants), short, wide, chain)
}

impl OnCpu for Xielu {
    fn on_cpu(&self, params: &[f32], call: AnyCall<'_, false>) -> Gradients {
        let (a_p, a_n) = (params[0], params[1]);
        let beta = params.get(2).copied().unwrap_or(self.beta);
        let raw = self.parameters == Parameters::Raw;
        let ((alpha_p, chain_p), (s_n, chain_n)) = if raw {
            (softplus(a_p), softplus(a_n))
        } else {
            ((a_p, 1.0), (a_n - beta, 1.0))
        };
        let constants = Constants {
            alpha_p,
            alpha_n: if raw { beta + s_n } else { a_n },
            s_n,
            beta,
            eps: self.compat.map_or(f32::INFINITY, |c| c.eps),
            raw,
            autograd: self
                .compat
                .is_some_and(|c| c.gradient == EpsGradient::Autograd),
        };
        let chain = [chain_p, chain_n, 1.0];
        // The ideal backward multiplies the parameters of one side by 0 on the other.
        let finite = (2.0 * alpha_p).is_finite() && constants.alpha_n.is_finite();
        if constants.eps != f32::INFINITY || alpha_p == 0.0 || s_n == 0.0 || !finite {
            let general = General(constants);
            call.run(general, general, general, chain)
        } else if params.len() == 2 {
            ideal::<2>(constants, call, chain)
        } else {
            ideal::<3>(constants, call, chain)
        }
    }
}
