//! Activations as differentiable ops of candle.

use std::sync::{Mutex, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor,
    bail,
};
use xact::{Activation, AnyActivation, Halves, Order, Xatlu, Xgelu, Xielu, Xsilu};

use crate::error::{FLOATS, check_device, check_dtype, check_shape, of_xact};
use crate::view::{View, common, fitted, last_dimension};

/// Computes xIELU of `x`, a tensor of any shape, with the raw scalars that checkpoints hold. [`activation`] takes the
/// options of xIELU, and β as a third scalar.
///
/// # Errors
/// As [`activation`].
pub fn xielu(x: &Tensor, alpha_p: &Tensor, alpha_n: &Tensor) -> Result<Tensor> {
    activation(Xielu::default(), x, &[alpha_p, alpha_n])
}

/// Computes xATLU of `x`, a tensor of any shape.
///
/// # Errors
/// As [`activation`].
pub fn xatlu(x: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    activation(Xatlu, x, &[alpha])
}

/// Computes xGELU of `x`, a tensor of any shape.
///
/// # Errors
/// As [`activation`].
pub fn xgelu(x: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    activation(Xgelu, x, &[alpha])
}

/// Computes xSiLU of `x`, a tensor of any shape.
///
/// # Errors
/// As [`activation`].
pub fn xsilu(x: &Tensor, alpha: &Tensor) -> Result<Tensor> {
    activation(Xsilu, x, &[alpha])
}

/// Computes y = f(x) for an op with any options. y has the shape and the dtype of `x`: f32, f16 or bf16.
///
/// `params` are the trainable scalars of the op, in the order of [`Signature::params`](xact::Signature::params). Optional
/// ones at the end may be left out. A scalar may have any shape with one element and any float dtype, for example f32
/// beside bf16 `x`. Its gradient has the same shape and dtype.
///
/// `x` may be any view. A view that consists of rows with one pitch is read in place. Other views (transposed, broadcast)
/// are copied first.
///
/// # Errors
/// A dtype, the number of scalars, a shape or a device is wrong; or an error of xact or candle.
pub fn activation(op: impl Into<AnyActivation>, x: &Tensor, params: &[&Tensor]) -> Result<Tensor> {
    let op = op.into();
    let call = Call {
        op,
        form: Form::Plain,
    };
    check_dtype("x", x, &FLOATS)?;
    let x = fitted(x, |layout| common([layout]).is_some())?;
    let params = joined(&op, &x, params)?;
    x.apply_op2(&params, Forward(call))
}

/// Computes y = g(x)·v, where g is G or f according to `order`. The gate `x` and the value `v` have the same shape and
/// dtype. See [`activation`] for the scalars and the views. For the halves of one tensor, [`gated_halves`] is faster: it
/// writes their gradients into one tensor.
///
/// # Errors
/// The errors of [`activation`]; or the op has no gated forms.
pub fn gated(
    op: impl Into<AnyActivation>,
    order: Order,
    x: &Tensor,
    v: &Tensor,
    params: &[&Tensor],
) -> Result<Tensor> {
    let op = op.into();
    op.as_gated().map_err(of_xact)?;
    let call = Call {
        op,
        form: Form::Pair(order),
    };
    check_dtype("x", x, &FLOATS)?;
    check_dtype("v", v, &[x.dtype()])?;
    check_shape("v", v, x.dims())?;
    check_device("v", v, x)?;
    let is_dense = common([x.layout(), v.layout()]).is_none();
    let dense = |layout: &Layout| !is_dense || layout.is_contiguous();
    let (x, v) = (fitted(x, dense)?, fitted(v, dense)?);
    let params = joined(&op, &x, params)?;
    x.apply_op3(&v, &params, Forward(call))
}

/// Computes y = g(x)·v, where x and v are the halves of `xv`, `[.., 2·n]`. `halves` says which half is the gate. y is
/// `[.., n]`, and the gradient of `xv` is one `[.., 2·n]` tensor.
///
/// # Errors
/// The errors of [`gated`].
pub fn gated_halves(
    op: impl Into<AnyActivation>,
    order: Order,
    xv: &Tensor,
    halves: Halves,
    params: &[&Tensor],
) -> Result<Tensor> {
    gated_of_one(op.into(), Form::Halves(order, halves), xv, params)
}

/// Computes y = g(x)·v, where x and v alternate in the last dimension of `xv`, `[.., 2·n]`: `block` columns of the gate, as
/// many of the value, and so on. `block` is 1, as in `[.., n, 2]` tensors, or a power of two from 8 to 256 that divides n.
/// `first` says which of the two comes first. y is `[.., n]`, and the gradient of `xv` alternates as `xv` does.
///
/// # Errors
/// The errors of [`gated`]. `block` is another number.
pub fn gated_interleaved(
    op: impl Into<AnyActivation>,
    order: Order,
    xv: &Tensor,
    first: Halves,
    block: usize,
    params: &[&Tensor],
) -> Result<Tensor> {
    gated_of_one(
        op.into(),
        Form::Interleaved(order, first, block),
        xv,
        params,
    )
}

/// A gated form of one tensor with gate and value.
fn gated_of_one(op: AnyActivation, form: Form, xv: &Tensor, params: &[&Tensor]) -> Result<Tensor> {
    op.as_gated().map_err(of_xact)?;
    let call = Call { op, form };
    check_dtype("xv", xv, &FLOATS)?;
    if xv.dims().last().is_none_or(|width| width % 2 != 0) {
        bail!(
            "xv is {:?}; its last dimension must be a gate and a value half of equal length",
            xv.dims()
        );
    }
    let xv = fitted(xv, |layout| last_dimension(layout, false).is_some())?;
    let params = joined(&op, &xv, params)?;
    xv.apply_op2(&params, Forward(call))
}

/// Joins the scalars into one `[n] f32` tensor. candle passes its gradient on to each scalar.
fn joined(op: &AnyActivation, x: &Tensor, params: &[&Tensor]) -> Result<Tensor> {
    let signature = op.signature();
    let (most, got) = (signature.params.len(), params.len());
    if !(most - signature.optional..=most).contains(&got) {
        bail!(
            "{} has the parameters {}, of which the last {} may be left out; {got} are given",
            signature.name,
            signature.params.join(", "),
            signature.optional
        );
    }
    let mut scalars = Vec::with_capacity(got);
    for (name, scalar) in signature.params.iter().zip(params) {
        if !scalar.dtype().is_float() {
            bail!("{name} is {}; it must be a float", scalar.dtype().as_str());
        }
        if scalar.elem_count() != 1 {
            bail!("{name} is {:?}; it must have one element", scalar.dims());
        }
        check_device(name, scalar, x)?;
        scalars.push(scalar.reshape(1)?.to_dtype(DType::F32)?);
    }
    match &scalars[..] {
        [scalar] => Ok(scalar.clone()),
        _ => Tensor::cat(&scalars, 0),
    }
}

/// A call: the op, and which tensors it takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) op: AnyActivation,
    pub(crate) form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// y = f(x).
    Plain,
    /// y = g(x)·v, for two tensors.
    Pair(Order),
    /// y = g(x)·v, for the halves of one tensor.
    Halves(Order, Halves),
    /// y = g(x)·v, for one tensor in which both alternate in blocks of so many columns.
    Interleaved(Order, Halves, usize),
}

/// The tensors of a call as rows of the same length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    /// If gate and value alternate, the rows of both, and `dx` likewise.
    pub(crate) x: View,
    pub(crate) v: Option<View>,
    /// The rows of y and dy.
    pub(crate) y: View,
    /// The rows of dx in the tensor that holds it.
    pub(crate) dx: View,
    /// The rows of dv. For halves, they are in the tensor of dx.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    // the CPU backend takes both halves as one argument
    pub(crate) dv: Option<View>,
}

impl Call {
    /// Finds the rows of the tensors with these layouts.
    pub(crate) fn operands(&self, layouts: &[&Layout]) -> Result<Operands> {
        let found = match (self.form, layouts) {
            (Form::Plain, [x]) => common([*x]).map(|[x]| (x, None)),
            (Form::Pair(_), [x, v]) => common([*x, *v]).map(|[x, v]| (x, Some(v))),
            (Form::Halves(_, halves), [xv]) => {
                last_dimension(xv, false).map(|xv| gate_and_value(xv, halves))
            }
            (Form::Interleaved(..), [xv]) => last_dimension(xv, false).map(|xv| (xv, None)),
            _ => None,
        };
        // The public functions copy tensors that have no such rows.
        let Some((x, v)) = found else {
            bail!("{} does not take tensors with this layout", self.name())
        };
        let cols = match self.form {
            Form::Interleaved(..) => x.cols / 2,
            _ => x.cols,
        };
        let y = View::dense(x.rows, cols);
        let (dx, dv) = match self.form {
            Form::Plain | Form::Interleaved(..) => (View::dense(x.rows, x.cols), None),
            Form::Pair(_) => (y, Some(y)),
            Form::Halves(_, halves) => gate_and_value(View::dense(x.rows, 2 * x.cols), halves),
        };
        Ok(Operands { x, v, y, dx, dv })
    }

    /// The shape of y, if the first tensor has this layout.
    pub(crate) fn shape(&self, first: &Layout) -> Shape {
        let mut dims = first.dims().to_vec();
        if let (Form::Halves(..) | Form::Interleaved(..), Some(width)) =
            (self.form, dims.last_mut())
        {
            *width /= 2;
        }
        dims.into()
    }

    fn name(&self) -> &'static str {
        self.op.signature().name
    }
}

fn gate_and_value(xv: View, halves: Halves) -> (View, Option<View>) {
    let [first, second] = xv.halves();
    match halves {
        Halves::GateFirst => (first, Some(second)),
        Halves::ValueFirst => (second, Some(first)),
    }
}

/// A tensor as candle passes it to an op.
pub(crate) type Operand<'a, S> = (&'a S, &'a Layout);

/// The forward. Its arguments are x or xv, and the parameters; or x, v and the parameters.
struct Forward(Call);

impl CustomOp2 for Forward {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        params: &CpuStorage,
        params_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        crate::cpu::forward(&self.0, &[(x, x_layout)], (params, params_layout))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        params: &CudaStorage,
        params_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        crate::cuda::forward(&self.0, &[(x, x_layout)], (params, params_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        params: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let backward = Backward::new(self.0, params);
        let dx = x.apply_op2_no_bwd(&dy.contiguous()?, &backward)?;
        let also = backward.also();
        Ok((x.track_op().then_some(dx), also.dparams))
    }
}

impl CustomOp3 for Forward {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
        params: &CpuStorage,
        params_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let tensors = [(x, x_layout), (v, v_layout)];
        crate::cpu::forward(&self.0, &tensors, (params, params_layout))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
        params: &CudaStorage,
        params_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let tensors = [(x, x_layout), (v, v_layout)];
        crate::cuda::forward(&self.0, &tensors, (params, params_layout))
    }

    fn bwd(
        &self,
        x: &Tensor,
        v: &Tensor,
        params: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let backward = Backward::new(self.0, params);
        let dx = x.apply_op3_no_bwd(v, &dy.contiguous()?, &backward)?;
        let also = backward.also();
        let dv = also.dv.filter(|_| v.track_op());
        Ok((x.track_op().then_some(dx), dv, also.dparams))
    }
}

/// The backward, which computes all gradients in one pass. Its arguments are x or xv, and dy; or x, v and dy. Its result
/// is the gradient of the first argument.
pub(crate) struct Backward<'a> {
    pub(crate) call: Call,
    pub(crate) params: &'a Tensor,
    /// The other gradients, since an op of candle has only one result.
    also: Mutex<Also>,
}

/// The gradients besides that of the first argument.
#[derive(Default)]
pub(crate) struct Also {
    dv: Option<Tensor>,
    dparams: Option<Tensor>,
}

impl<'a> Backward<'a> {
    fn new(call: Call, params: &'a Tensor) -> Backward<'a> {
        Backward {
            call,
            params,
            also: Mutex::default(),
        }
    }

    /// Whether the gradients of the parameters are needed.
    pub(crate) fn with_dparams(&self) -> bool {
        self.params.track_op()
    }

    /// Stores dv, which has this shape, and the gradients of the parameters.
    fn put(&self, shape: &Shape, dv: Option<Storage>, dparams: Option<Storage>) {
        let tensor = |storage, shape: &Shape| {
            Tensor::from_storage(storage, shape, BackpropOp::none(), false)
        };
        *self.also.lock().unwrap_or_else(PoisonError::into_inner) = Also {
            dv: dv.map(|dv| tensor(dv, shape)),
            dparams: dparams.map(|dparams| tensor(dparams, self.params.shape())),
        };
    }

    fn also(self) -> Also {
        self.also
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn on_cpu(
        &self,
        tensors: &[Operand<'_, CpuStorage>],
        dy: Operand<'_, CpuStorage>,
    ) -> Result<(CpuStorage, Shape)> {
        let written = crate::cpu::backward(self, tensors, dy)?;
        let shape = tensors[0].1.shape();
        let [dv, dparams] = [written.dv, written.dparams].map(|s| s.map(Storage::Cpu));
        self.put(shape, dv, dparams);
        Ok((written.dx, shape.clone()))
    }

    fn on_cuda(
        &self,
        tensors: &[Operand<'_, CudaStorage>],
        dy: Operand<'_, CudaStorage>,
    ) -> Result<(CudaStorage, Shape)> {
        let written = crate::cuda::backward(self, tensors, dy)?;
        let shape = tensors[0].1.shape();
        let [dv, dparams] = [written.dv, written.dparams].map(|s| s.map(Storage::Cuda));
        self.put(shape, dv, dparams);
        Ok((written.dx, shape.clone()))
    }
}

/// The gradients that a backward has computed.
pub(crate) struct Written<S> {
    /// The gradient of x or xv.
    pub(crate) dx: S,
    /// The gradient of v, if it is a tensor.
    pub(crate) dv: Option<S>,
    /// The gradients of the parameters, if they are needed.
    pub(crate) dparams: Option<S>,
}

impl CustomOp2 for Backward<'_> {
    fn name(&self) -> &'static str {
        self.call.name()
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(&[(x, x_layout)], (dy, dy_layout))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(&[(x, x_layout)], (dy, dy_layout))
    }
}

impl CustomOp3 for Backward<'_> {
    fn name(&self) -> &'static str {
        self.call.name()
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(&[(x, x_layout), (v, v_layout)], (dy, dy_layout))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(&[(x, x_layout), (v, v_layout)], (dy, dy_layout))
    }
}
