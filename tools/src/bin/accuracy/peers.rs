//! The formulas of existing implementations in their own arithmetic, and the ranges to plot.
//!
//! To favour the peers, every operation is correctly rounded, including exp, expm1, arctan and erf, and no parameter is
//! rounded: the parameters in the plots are exact in bf16.
use xact_dev::plot::{Axis, Scale};

/// The formula of an implementation, evaluated in one type.
pub struct Peer {
    /// The name in the legend.
    pub name: &'static str,
    /// f(x). The first argument rounds to the type after every operation.
    pub formula: fn(Round<'_>, f64) -> f64,
}

/// Rounds to the type of a formula.
pub type Round<'a> = &'a dyn Fn(f64) -> f64;

/// The plot of an op.
pub struct Subject {
    /// The name of the op as in papers.
    pub name: String,
    /// The sample with the parameters of the plot.
    pub sample: &'static str,
    /// The values of the parameters, and what to look at.
    pub notes: Vec<&'static str>,
    pub x: Axis,
    pub f32: Vec<Peer>,
    pub bf16: Vec<Peer>,
}

/// The plot of the op of this name. An op without an entry is plotted without peers.
pub fn subject(op: &str) -> Subject {
    let axis = |scale, min, max| Axis {
        label: match scale {
            Scale::SymmetricLog { .. } => "x (logarithmic on both sides of 0)",
            Scale::Linear | Scale::Log | Scale::Log2 => "x",
        }
        .to_owned(),
        scale,
        min,
        max,
    };
    match op {
        "xielu" => Subject {
            name: "xIELU".to_owned(),
            sample: "apertus",
            notes: vec![
                "Trained parameters, layer 0 of Apertus-8B-Instruct-2509: α_p = 166, α_n = 41.25, β = 0.5.",
                "Near 0, exp(x) − 1 loses its digits, in bf16 also the sign.",
            ],
            x: axis(Scale::SymmetricLog { linear: 1e-7 }, -100.0, 100.0),
            f32: vec![
                Peer {
                    name: "α_n·(exp(x) − 1) − s_n·x / in f32",
                    formula: xielu_exp,
                },
                Peer {
                    name: "α_n·(expm1(x) − x) + β·x / in f32",
                    formula: xielu_expm1,
                },
            ],
            bf16: vec![
                Peer {
                    name: "α_n·(exp(x) − 1) − s_n·x / in bf16",
                    formula: xielu_exp,
                },
                Peer {
                    name: "α_n·(expm1(x) − x) + β·x / in bf16",
                    formula: xielu_expm1,
                },
            ],
        },
        "xatlu" => Subject {
            name: "xATLU".to_owned(),
            sample: "initial",
            notes: vec![
                "Initial parameter, α = 0.",
                "On the left, ½ + arctan(x)/π cancels: f(−∞) is −1/π, the formula ends at 0.",
            ],
            x: axis(Scale::SymmetricLog { linear: 1e-3 }, -1e7, 1e7),
            f32: vec![Peer {
                name: "x·(arctan(x)/π + ½) / in f32",
                formula: xatlu,
            }],
            bf16: vec![Peer {
                name: "x·(arctan(x)/π + ½) / in bf16",
                formula: xatlu,
            }],
        },
        "xgelu" => Subject {
            name: "xGELU".to_owned(),
            sample: "initial",
            notes: vec![
                "Initial parameter, α = 0, with which f is GELU.",
                "On the left, ½·(1 + erf(x/√2)) cancels, and is 0 long before f is.",
            ],
            x: axis(Scale::Linear, -15.0, 5.0),
            f32: vec![Peer {
                name: "x·(½·erf(x/√2) + ½) / in f32",
                formula: xgelu,
            }],
            bf16: vec![Peer {
                name: "x·(½·erf(x/√2) + ½) / in bf16",
                formula: xgelu,
            }],
        },
        "xsilu" => Subject {
            name: "xSiLU".to_owned(),
            sample: "initial",
            notes: vec![
                "Initial parameter, α = 0, with which f is SiLU.",
                "Where exp(−x) overflows, below −88.7, 1/(1 + exp(−x)) is 0; f is not yet.",
            ],
            x: axis(Scale::Linear, -110.0, 20.0),
            f32: vec![Peer {
                name: "x/(1 + exp(−x)) / in f32",
                formula: xsilu,
            }],
            bf16: vec![Peer {
                name: "x·σ(x) / in bf16",
                formula: xsilu,
            }],
        },
        _ => Subject {
            name: op.to_owned(),
            sample: "initial",
            notes: vec!["Initial parameters."],
            x: axis(Scale::SymmetricLog { linear: 1e-4 }, -1e4, 1e4),
            f32: Vec::new(),
            bf16: Vec::new(),
        },
    }
}

/// α_p, α_n and β of the sample `apertus`, after softplus.
const APERTUS: [f64; 3] = [166.0, 41.25, 0.5];

/// The formula of the CUDA kernels: rubber-duck-debug/xielu, in bf16 where it loads vectors of bf16, and
/// nathanrchn/kernels, in f32.
fn xielu_exp(r: Round<'_>, x: f64) -> f64 {
    let [alpha_p, alpha_n, beta] = APERTUS;
    if x > 0.0 {
        return r(r(x * r(alpha_p * x)) + r(beta * x));
    }
    let expm1 = r(r(libm::exp(x)) - 1.0);
    r(r(alpha_n * expm1) - r((alpha_n - beta) * x))
}

/// The formula of `XIELUActivation` in Hugging Face transformers, without the clamp at −1e-6, which makes it another
/// function and is not an error.
fn xielu_expm1(r: Round<'_>, x: f64) -> f64 {
    let [alpha_p, alpha_n, beta] = APERTUS;
    if x > 0.0 {
        return r(r(r(alpha_p * x) * x) + r(beta * x));
    }
    r(r(r(r(libm::expm1(x)) - x) * alpha_n) + r(beta * x))
}

/// The formula of AllenHaoHuang/x-activation, here and below, for α = 0.
fn xatlu(r: Round<'_>, x: f64) -> f64 {
    let slope = r(std::f64::consts::FRAC_1_PI);
    r(r(r(r(libm::atan(x)) * slope) + 0.5) * x)
}

fn xgelu(r: Round<'_>, x: f64) -> f64 {
    let z = r(x * r(std::f64::consts::FRAC_1_SQRT_2));
    r(r(r(r(libm::erf(z)) * 0.5) + 0.5) * x)
}

/// In the frameworks, the logistic function is one operation, which is evaluated in f32 and rounded.
fn xsilu(r: Round<'_>, x: f64) -> f64 {
    let f32 = |v: f64| f64::from(v as f32);
    let sigma = f32(1.0 / f32(1.0 + f32(libm::exp(-x))));
    r(x * r(sigma))
}
