//! The activations and the loss composed of candle's operations, for comparison in tests and benches.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::{log_softmax, sigmoid};

/// log(1 + e^z).
fn softplus(z: &Tensor) -> Result<Tensor> {
    let tail = (z.abs()?.neg()?.exp()? + 1.0)?.log()?;
    z.relu()? + tail
}

/// xIELU with raw parameters and the clamp of Hugging Face's formula.
pub fn xielu(x: &Tensor, alpha_p: &Tensor, alpha_n: &Tensor) -> Result<Tensor> {
    let (beta, eps) = (0.5, -1e-6);
    let alpha_p = softplus(alpha_p)?;
    let alpha_n = (softplus(alpha_n)? + beta)?;
    let linear = (x * beta)?;
    let positive = (x.sqr()?.broadcast_mul(&alpha_p)? + &linear)?;
    let expm1 = (x.minimum(eps)?.exp()? - 1.0)?;
    let negative = ((expm1 - x)?.broadcast_mul(&alpha_n)? + &linear)?;
    x.gt(0.0)?.where_cond(&positive, &negative)
}

/// G(x) = (1 + 2α)·g − α.
fn expanded(g: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    let factor = ((alpha * 2.0)? + 1.0)?;
    g.broadcast_mul(&factor)?.broadcast_sub(alpha)
}

/// The gate of xSiLU.
pub fn gate_xsilu(x: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    expanded(&sigmoid(x)?, alpha)
}

/// The gate of xGELU.
pub fn gate_xgelu(x: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    let erf = (x * std::f64::consts::FRAC_1_SQRT_2)?.erf()?;
    expanded(&((erf + 1.0)? * 0.5)?, alpha)
}

/// The gate of xATLU. candle has no arctangent; this is Abramowitz and Stegun's 4.4.49, with an error of 1e-5.
pub fn gate_xatlu(x: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    let size = x.abs()?;
    let inverse = size.maximum(1.0)?.recip()?;
    let r = (size.minimum(1.0)? * &inverse)?;
    let square = r.sqr()?;
    let mut sum = ((&square * 0.020_835_1)? - 0.085_133_0)?;
    for coefficient in [0.180_141_0, -0.330_299_5, 0.999_866_0] {
        sum = ((sum * &square)? + coefficient)?;
    }
    let small = (sum * &r)?;
    let large = (std::f64::consts::FRAC_PI_2 - &small)?;
    let arctan = size.gt(1.0)?.where_cond(&large, &small)?;
    let arctan = x.gt(0.0)?.where_cond(&arctan, &arctan.neg()?)?;
    expanded(&((arctan * std::f64::consts::FRAC_1_PI)? + 0.5)?, alpha)
}

pub fn xsilu(x: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    x * gate_xsilu(x, alpha)?
}

pub fn xgelu(x: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    x * gate_xgelu(x, alpha)?
}

pub fn xatlu(x: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    x * gate_xatlu(x, alpha)?
}

/// The mean loss; `labels` are u32, all of them classes.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let log_p = log_softmax(logits, D::Minus1)?;
    log_p.gather(&labels.unsqueeze(1)?, 1)?.mean_all()?.neg()
}
