//! xIELU: an activation with two trainable scalars, quadratic for x > 0 and exponential-linear for x ≤ 0.
//!
//! Source: Huang & Schlag, *Deriving Activation Functions Using Integration*, arXiv 2411.13010. The Apertus models use it.
//!
//! ```text
//! x > 0:  f = α_p·x² + β·x                              f′ = 2·α_p·x + β
//! x ≤ 0:  f = α_n·(expm1(x) − x) + β·x                  f′ = α_n·expm1(x) + β
//! ∂f/∂α_p = x²·[x > 0]      ∂f/∂α_n = (expm1(x) − x)·[x ≤ 0]
//! ```

use std::any::Any;

use super::op::{
    Activation, Evaluation, MAX_PARAMS, Named, Registered, Sample, Signature, Term, sealed,
};
use super::shared::shared;
use crate::blocks::ActivationArgs;

/// The activation xIELU and its options. The default is the function of the paper with the parameters that checkpoints
/// hold: raw parameters, β = 0.5, no clamp. The parameters of a call are `alpha_p`, `alpha_n` and, optionally, `beta`.
///
/// Special values for α_p ≥ 0, β > 0 and α_n > β:
/// - f(+inf) = +inf, f(−inf) = +inf, f(NaN) = NaN, f(−0) = −0;
/// - f′(+inf) = +inf, f′(−inf) = β − α_n;
/// - in the parameter gradients, a NaN in x counts as x ≤ 0.
///
/// For other parameters, f(−inf) is −α_n if α_n = β, and −inf if α_n < β; f(+inf) is −inf if α_p < 0, and β·inf if α_p = 0.
///
/// f16 results beyond 65504 are inf: with α_p = 166 of Apertus-8B's first layer, from |x| = 19.9 on.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Xielu {
    /// Whether the scalars of a call are raw or effective parameters. Raw by default.
    pub parameters: Parameters,
    /// β, the slope at 0, for calls that do not give `beta` as a parameter. 0.5 by default.
    pub beta: f32,
    /// The clamp of Hugging Face and Megatron. `None`, the default, is the function of the paper.
    pub compat: Option<Compat>,
}

impl Default for Xielu {
    fn default() -> Self {
        Xielu {
            parameters: Parameters::Raw,
            beta: 0.5,
            compat: None,
        }
    }
}

impl Xielu {
    /// Sets whether the scalars of a call are raw or effective parameters.
    #[must_use]
    pub fn parameters(mut self, parameters: Parameters) -> Xielu {
        self.parameters = parameters;
        self
    }

    /// Sets β, for calls that do not give `beta` as a parameter.
    #[must_use]
    pub fn beta(mut self, beta: f32) -> Xielu {
        self.beta = beta;
        self
    }

    /// Sets the clamp of the formula of Hugging Face and Megatron.
    #[must_use]
    pub fn compat(mut self, compat: Compat) -> Xielu {
        self.compat = Some(compat);
        self
    }
}

/// The meaning of the scalars `alpha_p` and `alpha_n` of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Parameters {
    /// The scalars are as trained and stored: α_p = softplus(alpha_p) and α_n = β + softplus(alpha_n). The gradients are
    /// with respect to the stored values.
    Raw,
    /// The scalars are α_p and α_n themselves, as inference formats such as ggml's operator take them.
    Effective,
}

/// The clamp in the formula of Hugging Face and Megatron: `α_n·(expm1(min(x, eps)) − x) + β·x` for x ≤ 0, evaluated in f32.
/// They clamp to keep the unused branch finite in autograd, which moves f(0) to α_n·eps.
///
/// One value differs on purpose: f(−inf) is the limit here, and inf − inf = NaN there.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Compat {
    /// The upper bound of expm1's argument: −1e-6 in Hugging Face transformers and Megatron. A positive value has no effect.
    /// The accuracy bounds hold for eps ≥ −1e-3. NaN and −inf are not meaningful.
    pub eps: f32,
    /// The derivative for eps < x ≤ 0.
    pub gradient: EpsGradient,
}

impl Compat {
    /// A clamp at `eps` with [`EpsGradient::Analytic`].
    pub fn new(eps: f32) -> Compat {
        Compat {
            eps,
            gradient: EpsGradient::Analytic,
        }
    }

    /// Sets the derivative for eps < x ≤ 0.
    #[must_use]
    pub fn gradient(mut self, gradient: EpsGradient) -> Compat {
        self.gradient = gradient;
        self
    }
}

/// The derivative of the clamped formula between eps and 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EpsGradient {
    /// `α_n·expm1(min(x, eps)) + β`, which is close to β, as in the CUDA kernels of the paper's authors.
    Analytic,
    /// The result of automatic differentiation: the clamp passes no gradient, so the slope is β − α_n for eps < x ≤ 0,
    /// including x = 0. At x = eps the clamp passes half of the gradient.
    Autograd,
}

/// The parameters of the formula, with s_n = α_n − β.
struct Effective {
    alpha_p: f64,
    alpha_n: f64,
    s_n: f64,
    beta: f64,
}

impl Xielu {
    /// alpha_p and alpha_n as stored, and β, which is the third parameter or the option.
    fn stored(&self, params: &[f64]) -> [f64; 3] {
        match *params {
            [a_p, a_n] => [a_p, a_n, f64::from(self.beta)],
            [a_p, a_n, beta] => [a_p, a_n, beta],
            _ => panic!("xIELU has 2 or 3 parameters, not {}", params.len()),
        }
    }

    fn effective(&self, params: &[f64]) -> Effective {
        let [a_p, a_n, beta] = self.stored(params);
        match self.parameters {
            Parameters::Raw => Effective {
                alpha_p: softplus(a_p),
                alpha_n: beta + softplus(a_n),
                s_n: softplus(a_n),
                beta,
            },
            Parameters::Effective => Effective {
                alpha_p: a_p,
                alpha_n: a_n,
                s_n: a_n - beta,
                beta,
            },
        }
    }
}

fn softplus(z: f64) -> f64 {
    z.max(0.0) + (-z.abs()).exp().ln_1p()
}

fn logistic(z: f64) -> f64 {
    let e = (-z.abs()).exp();
    if z > 0.0 {
        1.0 / (1.0 + e)
    } else {
        e / (1.0 + e)
    }
}

/// expm1(x) − x. The series is used where the difference would cancel.
fn q(x: f64) -> f64 {
    if x.abs() >= 0.5 {
        return x.exp_m1() - x;
    }
    // x²/2 + x³/6 + …; the 16th term is below 1e-20 of the first at |x| = ½.
    let mut term = x * x / 2.0;
    let mut sum = 0.0;
    for k in 3..19 {
        sum += term;
        term *= x / f64::from(k);
    }
    sum
}

impl sealed::Op for Xielu {
    fn concrete(&self) -> &dyn Any {
        self
    }

    fn set_options(&self, args: &mut ActivationArgs) {
        args.raw_params = u32::from(self.parameters == Parameters::Raw);
        args.beta = self.beta;
        args.eps = self.compat.map_or(f32::INFINITY, |c| c.eps);
        args.autograd = u32::from(
            self.compat
                .is_some_and(|c| c.gradient == EpsGradient::Autograd),
        );
    }
}

impl Registered for Xielu {
    /// The formula of expm1 changes at 1.25.
    const SWITCH_OVERS: &'static [f64] = &[1.25];

    fn samples() -> Vec<Sample<Self>> {
        let raw = Xielu::default();
        let effective = Xielu {
            parameters: Parameters::Effective,
            ..raw
        };
        let compat = |eps, gradient| Xielu {
            compat: Some(Compat { eps, gradient }),
            ..raw
        };
        // softplus⁻¹ of 0.8 and of 0.8 − β.
        let initial = [0.203_381_5, -1.050_225_7];
        // Layer 0 of Apertus-8B-Instruct-2509.
        let apertus = [166.0, 40.75];
        let sample = |name, op, params: [f32; 2]| Sample {
            name,
            op,
            params: params.to_vec(),
        };
        let with_beta = |name, op, params: [f32; 3]| Sample {
            name,
            op,
            params: params.to_vec(),
        };
        vec![
            sample("initial", raw, initial),
            sample("apertus", raw, apertus),
            // Both softplus are tiny but alive, then both underflow to 0.
            sample("faint", raw, [-20.0, -30.0]),
            sample("dead", raw, [-200.0, -200.0]),
            sample("effective", effective, [0.8, 0.8]),
            // β as a parameter.
            with_beta("trained beta", raw, [0.5, -0.25, 0.125]),
            with_beta("effective beta", effective, [2.0, 0.75, -0.5]),
            // With α_n < β, f falls for x < 0. With α_n = β = 0, f is 0 there.
            sample("falling", effective, [3.0, 0.125]),
            sample(
                "flat",
                Xielu {
                    beta: 0.0,
                    ..effective
                },
                [0.0, 0.0],
            ),
            sample(
                "beta < 0",
                Xielu {
                    beta: -1.5,
                    ..effective
                },
                [1e-3, 1000.0],
            ),
            sample("analytic", compat(-1e-6, EpsGradient::Analytic), initial),
            sample("autograd", compat(-1e-6, EpsGradient::Autograd), apertus),
            sample("eps > 0", compat(1e-6, EpsGradient::Autograd), apertus),
            sample("eps = 0", compat(0.0, EpsGradient::Autograd), initial),
            // The clamp where expm1 has its other formula, and β as a parameter.
            with_beta(
                "eps = -2",
                compat(-2.0, EpsGradient::Autograd),
                [0.5, -0.25, 0.125],
            ),
        ]
    }

    fn measured(&self, params: &[f32], run: &mut dyn FnMut(&Self, &[f32], f32) -> f32) -> Vec<f64> {
        if self.parameters == Parameters::Effective {
            return params.iter().map(|&p| f64::from(p)).collect();
        }
        // With β = 0, f(1) = α_p = softplus(a_p), without any rounding.
        let probe = Xielu {
            beta: 0.0,
            ..Xielu::default()
        };
        let measure = |&raw: &f32| {
            let softplus = f64::from(run(&probe, &[raw, 0.0], 1.0));
            // Its inverse: log(e^s - 1).
            softplus + (-(-softplus).exp_m1()).ln()
        };
        let mut measured: Vec<_> = params[..2].iter().map(measure).collect();
        measured.extend(params[2..].iter().map(|&beta| f64::from(beta)));
        measured
    }
}

impl Activation for Xielu {
    fn signature(&self) -> &'static Signature {
        &Xielu::SIGNATURE
    }

    fn evaluate(&self, params: &[f64], x: f64) -> Evaluation {
        let Effective {
            alpha_p,
            alpha_n,
            s_n,
            beta,
        } = self.effective(params);
        let product = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a * b };
        if x == f64::INFINITY {
            // The limits: α_p·x² dominates β·x.
            let limit = |a: f64| if a == 0.0 { beta } else { a };
            let (y, slope) = (
                limit(alpha_p) * x,
                if alpha_p == 0.0 { beta } else { alpha_p * x },
            );
            return Evaluation {
                y: Term {
                    value: y,
                    largest_addend: x,
                },
                slope: Term {
                    value: slope,
                    largest_addend: slope.abs(),
                },
                dparams: [x, 0.0, x],
                dparam_addends: [x, 0.0, x],
            };
        }
        if x > 0.0 {
            let (square, linear) = (alpha_p * x * x, beta * x);
            let rise = 2.0 * alpha_p * x;
            return Evaluation {
                y: Term {
                    value: square + linear,
                    largest_addend: square.abs().max(linear.abs()),
                },
                slope: Term {
                    value: rise + beta,
                    largest_addend: rise.abs().max(beta.abs()),
                },
                dparams: [x * x, 0.0, x],
                dparam_addends: [x * x, 0.0, x],
            };
        }
        let eps = self.compat.map_or(f64::INFINITY, |c| f64::from(c.eps));
        let clamped = if x > eps { eps } else { x };
        let (expm1, shift) = (clamped.exp_m1(), clamped - x);
        // q of the clamped formula: expm1(min(x, eps)) − x.
        let q = if x == f64::NEG_INFINITY {
            f64::INFINITY
        } else {
            q(clamped) + shift
        };
        // The same sum in two groupings. The first has the smaller addends near 0, the second for large |x|.
        let near = [alpha_n * q, beta * x];
        let far = [alpha_n * expm1, product(-s_n, x)];
        let size = |addends: [f64; 2]| addends[0].abs().max(addends[1].abs());
        let scale = size(near).min(size(far));
        let y = if x == 0.0 && shift == 0.0 {
            // Adding α_n·q(−0) = +0 would lose the sign of −0.
            beta * x
        } else if x > -1.0 {
            near[0] + near[1]
        } else {
            far[0] + far[1]
        };
        // With raw parameters α_n depends on β.
        let dbeta = match self.parameters {
            Parameters::Raw => expm1,
            Parameters::Effective => x,
        };
        let autograd = self
            .compat
            .is_some_and(|c| c.gradient == EpsGradient::Autograd);
        let steep = if autograd && x > eps {
            -alpha_n
        } else if autograd && x == eps {
            alpha_n * (0.5 * clamped.exp() - 1.0)
        } else {
            alpha_n * expm1
        };
        // For large |x| the two addends would cancel to −s_n.
        let slope = if clamped < -1.0 && !(autograd && x >= eps) {
            alpha_n * clamped.exp() - s_n
        } else {
            steep + beta
        };
        Evaluation {
            y: Term {
                value: y,
                largest_addend: scale,
            },
            slope: Term {
                value: slope,
                largest_addend: steep.abs().max(beta.abs()),
            },
            dparams: [0.0, q, dbeta],
            dparam_addends: [0.0, expm1.abs() + x.abs(), dbeta.abs()],
        }
    }

    fn chain(&self, params: &[f64]) -> [f64; MAX_PARAMS] {
        let [a_p, a_n, _] = self.stored(params);
        match self.parameters {
            Parameters::Raw => [logistic(a_p), logistic(a_n), 1.0],
            Parameters::Effective => [1.0; MAX_PARAMS],
        }
    }

    fn parameter_ulps(&self) -> f64 {
        match self.parameters {
            Parameters::Raw => 4.0,
            Parameters::Effective => 0.0,
        }
    }
}

shared! {
    /// For NEAR < x ≤ 0, q(x) = expm1(x) − x is computed as x²·r(x); for x ≤ NEAR, as eˣ − 1 − x.
    constant NEAR: -1.25;
    /// r = ½ + x·R(x) with R of degree 5, minimax for the relative error of q: 2⁻²⁸·⁵ before rounding, below 3·2⁻²⁴
    /// after.
    polynomial q_over_square: 1.545_181_5e-5, 0.000_183_806_39, 0.001_377_116_1, 0.008_328_428_5, 0.041_665_714, 0.166_666_6, 0.5;
    // Of 16-bit tensors: r(x) = q(x)/x² for NEAR ≤ x ≤ 0, minimax for the error that q may have there.
    /// τ of bf16.
    constant NEAR_BF16: -0.25;
    /// r of bf16: 2⁻¹⁷·⁰.
    constant R0_BF16: 0.499_996_1;
    /// The next coefficient.
    constant R1_BF16: 0.166_388_23;
    /// The last.
    constant R2_BF16: 0.038_673_345;
    /// τ of f16.
    constant NEAR_F16: -0.5;
    /// r of f16: 2⁻¹⁹·⁶.
    constant R0_F16: 0.499_999_37;
    /// The next coefficient.
    constant R1_F16: 0.166_627_94;
    /// The next.
    constant R2_F16: 0.041_279_25;
    /// The last.
    constant R3_F16: 0.007_064_877;
}
