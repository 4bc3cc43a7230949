//! Modules in the style of `candle_nn`. A [`VarBuilder`] provides the scalars, under the names of published checkpoints.
//!
//! The scalars are f32 whatever the dtype of the model, because bf16 would round most optimiser steps away.

use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use xact::{
    Activation as _, AnyActivation, Compat, EpsGradient, Halves, Order, Xatlu, Xgelu, Xsilu,
};

use crate::{activation, gated_halves};

/// An activation with its trainable scalars.
#[derive(Clone, Debug)]
pub struct Activation {
    op: AnyActivation,
    params: Vec<Tensor>,
}

impl Activation {
    /// Combines an op with its scalars, in the order of [`Signature::params`](xact::Signature::params). The forward checks
    /// how many there are.
    pub fn new(op: impl Into<AnyActivation>, params: Vec<Tensor>) -> Activation {
        Activation {
            op: op.into(),
            params,
        }
    }

    /// The op with its options.
    pub fn op(&self) -> AnyActivation {
        self.op
    }

    /// The scalars, in the order of [`Signature::params`](xact::Signature::params).
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// Makes the gated form for the halves of `[.., 2·n]` tensors.
    ///
    /// # Errors
    /// The op has no gated forms.
    pub fn gated(self, order: Order, halves: Halves) -> Result<Gated> {
        self.op.as_gated().map_err(crate::error::of_xact)?;
        Ok(Gated {
            activation: self,
            order,
            halves,
        })
    }
}

impl Module for Activation {
    /// Computes y = f(x), with the shape and the dtype of x.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        activation(self.op, x, &self.params.iter().collect::<Vec<_>>())
    }
}

/// A gated activation of the halves of `[.., 2·n]` tensors, for example of a fused gate and value projection.
#[derive(Clone, Debug)]
pub struct Gated {
    activation: Activation,
    order: Order,
    halves: Halves,
}

impl Gated {
    /// The activation.
    pub fn activation(&self) -> &Activation {
        &self.activation
    }
}

impl Module for Gated {
    /// Computes y = g(x)·v, `[.., n]`.
    fn forward(&self, xv: &Tensor) -> Result<Tensor> {
        let Activation { op, params } = &self.activation;
        let params: Vec<&Tensor> = params.iter().collect();
        gated_halves(*op, self.order, xv, self.halves, &params)
    }
}

/// The options of [`xielu`].
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct XieluConfig {
    /// The α_p of a new module, which must be positive. 0.8.
    pub alpha_p: f64,
    /// The α_n of a new module, which must be larger than β. 0.8.
    pub alpha_n: f64,
    /// The β of a new module, or of a checkpoint without one. 0.5.
    pub beta: f64,
    /// The bound of the clamp of a new module, or of a checkpoint without one. −1e-6.
    pub eps: f64,
    /// The gradient of the clamp in the formula of Hugging Face and Megatron. `None` selects the ideal function, without the
    /// clamp; it differs for x in (eps, 0].
    pub clamp: Option<EpsGradient>,
    /// Whether β is a third trainable scalar. Off: its value is read when the module is constructed.
    pub train_beta: bool,
}

impl Default for XieluConfig {
    fn default() -> Self {
        XieluConfig {
            alpha_p: 0.8,
            alpha_n: 0.8,
            beta: 0.5,
            eps: -1e-6,
            clamp: None,
            train_beta: false,
        }
    }
}

impl XieluConfig {
    /// Sets α_p and α_n of a new module.
    #[must_use]
    pub fn initial(mut self, alpha_p: f64, alpha_n: f64) -> XieluConfig {
        (self.alpha_p, self.alpha_n) = (alpha_p, alpha_n);
        self
    }

    /// Selects the clamped formula, with this gradient.
    #[must_use]
    pub fn clamp(mut self, gradient: EpsGradient) -> XieluConfig {
        self.clamp = Some(gradient);
        self
    }

    /// Sets whether β is trained.
    #[must_use]
    pub fn train_beta(mut self, train_beta: bool) -> XieluConfig {
        self.train_beta = train_beta;
        self
    }
}

/// Constructs xIELU with the raw scalars `alpha_p` and `alpha_n`, `[1]`, and the buffers `beta` and `eps`, `[]`, which are
/// the names and shapes of Apertus checkpoints (`model.layers.N.mlp.act_fn`). A checkpoint may lack the buffers. In a
/// `VarMap`, missing tensors are created; `beta` and `eps` are then variables that receive no gradient.
///
/// # Errors
/// A scalar is missing or has another shape; or the α_p or α_n of a new module has no raw value.
pub fn xielu(config: &XieluConfig, vb: VarBuilder) -> Result<Activation> {
    let beta = buffer(&vb, "beta", config.beta)?;
    let eps = buffer(&vb, "eps", config.eps)?;
    let beta_value = value(beta.as_ref(), config.beta)?;
    let scalar = |name: &str, target: f64| {
        let is_new = !vb.contains_tensor(name);
        if is_new && target <= 0.0 {
            bail!("a new xIELU has no raw {name}: it would be the inverse softplus of {target}")
        }
        let init = Init::Const(inverse_softplus(target));
        vb.get_with_hints_dtype(1, name, init, DType::F32)
    };
    let mut params = vec![
        scalar("alpha_p", config.alpha_p)?,
        scalar("alpha_n", config.alpha_n - f64::from(beta_value))?,
    ];
    let mut op = xact::Xielu::default().beta(beta_value);
    if let Some(gradient) = config.clamp {
        let eps = value(eps.as_ref(), config.eps)?;
        op = op.compat(Compat::new(eps).gradient(gradient));
    }
    if config.train_beta {
        match beta {
            Some(beta) => params.push(beta),
            None => bail!("beta is to be trained, but {:?} has none", vb.prefix()),
        }
    }
    Ok(Activation::new(op, params))
}

/// Constructs xATLU with the scalar `alpha`, `[1]`, which is 0 in a new module.
///
/// # Errors
/// The scalar is missing or has another shape.
pub fn xatlu(vb: VarBuilder) -> Result<Activation> {
    expanded(Xatlu, vb)
}

/// Constructs xGELU with the scalar `alpha`, `[1]`, which is 0 in a new module.
///
/// # Errors
/// The scalar is missing or has another shape.
pub fn xgelu(vb: VarBuilder) -> Result<Activation> {
    expanded(Xgelu, vb)
}

/// Constructs xSiLU with the scalar `alpha`, `[1]`, which is 0 in a new module.
///
/// # Errors
/// The scalar is missing or has another shape.
pub fn xsilu(vb: VarBuilder) -> Result<Activation> {
    expanded(Xsilu, vb)
}

fn expanded(op: impl Into<AnyActivation>, vb: VarBuilder) -> Result<Activation> {
    let op = op.into();
    let names = op.signature().params.iter();
    let scalar = |name| vb.get_with_hints_dtype(1, name, Init::Const(0.0), DType::F32);
    let params = names.map(|name| scalar(name)).collect::<Result<_>>()?;
    Ok(Activation { op, params })
}

/// Reads a buffer; `None` if a checkpoint lacks it.
fn buffer(vb: &VarBuilder, name: &str, default: f64) -> Result<Option<Tensor>> {
    let exists = vb.contains_tensor(name);
    // A VarMap creates a tensor that it lacks.
    let got = vb.get_with_hints_dtype((), name, Init::Const(default), DType::F32);
    if exists { got.map(Some) } else { Ok(got.ok()) }
}

fn value(buffer: Option<&Tensor>, default: f64) -> Result<f32> {
    buffer.map_or(Ok(default as f32), |buffer| buffer.to_scalar())
}

/// log(e^s − 1).
fn inverse_softplus(s: f64) -> f64 {
    s + (-(-s).exp_m1()).ln()
}
