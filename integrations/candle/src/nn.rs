//! Modules in the manner of `candle_nn`: activations whose scalars a [`VarBuilder`] holds, under the names of published
//! checkpoints.
//!
//! The scalars are f32 whatever the type of the model: a step of an optimiser is smaller than a digit of bf16.

use candle_core::{DType, Module, Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use xact::{
    Activation as _, AnyActivation, Compat, EpsGradient, Halves, Order, Xatlu, Xgelu, Xsilu,
};

use crate::{activation, gated_halves};

/// An activation with its scalars.
#[derive(Clone, Debug)]
pub struct Activation {
    op: AnyActivation,
    params: Vec<Tensor>,
}

impl Activation {
    /// An op with its scalars, in the order of [`Signature::params`](xact::Signature::params); their number is checked
    /// by the forward.
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

    /// The gated form over the halves of `[.., 2·n]`.
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
    /// y = f(x), of the shape and the type of x.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        activation(self.op, x, &self.params.iter().collect::<Vec<_>>())
    }
}

/// A gated activation over the halves of `[.., 2·n]`, such as what one matrix product makes of gate and value.
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
    /// y = g(x)·v, `[.., n]`.
    fn forward(&self, xv: &Tensor) -> Result<Tensor> {
        let Activation { op, params } = &self.activation;
        let params: Vec<&Tensor> = params.iter().collect();
        gated_halves(*op, self.order, xv, self.halves, &params)
    }
}

/// What [`xielu`] makes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct XieluConfig {
    /// α_p of a new module, positive: 0.8.
    pub alpha_p: f64,
    /// α_n of a new module, above β: 0.8.
    pub alpha_n: f64,
    /// β where the checkpoint has none: 0.5.
    pub beta: f64,
    /// The bound of the clamp where the checkpoint has none: −1e-6.
    pub eps: f64,
    /// The clamp of the formula of Hugging Face and Megatron, and its gradient. `None`: the ideal function, which is the
    /// same but for x in (eps, 0].
    pub clamp: Option<EpsGradient>,
    /// Whether β is a third trainable scalar. Off: it is read once, when the module is made.
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

    /// Sets the clamp and its gradient.
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

/// xIELU with the scalars `alpha_p` and `alpha_n`, `[1]`, raw, and the buffers `beta` and `eps`, `[]`, as in the
/// checkpoints of Apertus (`model.layers.N.mlp.act_fn`). What a new `VarMap` lacks is made in it; a checkpoint without
/// the buffers is taken too.
///
/// # Errors
/// A scalar is missing or of another shape; a new module's α_p or α_n has no raw value.
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

/// xATLU with the scalar `alpha`, `[1]`, 0 in a new module.
///
/// # Errors
/// It is missing or of another shape.
pub fn xatlu(vb: VarBuilder) -> Result<Activation> {
    expanded(Xatlu, vb)
}

/// xGELU with the scalar `alpha`, `[1]`, 0 in a new module.
///
/// # Errors
/// It is missing or of another shape.
pub fn xgelu(vb: VarBuilder) -> Result<Activation> {
    expanded(Xgelu, vb)
}

/// xSiLU with the scalar `alpha`, `[1]`, 0 in a new module.
///
/// # Errors
/// It is missing or of another shape.
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

/// A buffer; `None` where a checkpoint lacks it.
fn buffer(vb: &VarBuilder, name: &str, default: f64) -> Result<Option<Tensor>> {
    let exists = vb.contains_tensor(name);
    // A VarMap makes what it lacks.
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
