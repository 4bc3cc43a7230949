//! The ops on candle's CPU tensors, computed by `xact::cpu`.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Layout, Result, Shape, Tensor, WithDType, bail};
use xact::cpu::{self, Input, Output, Pair, PairMut};
use xact::half::{bf16, f16};

use crate::activation::{Backward, Call, Form, Operand, Written};
use crate::cross_entropy::{Forward, Gradient, Reduction, Results, Wanted};
use crate::error::of_xact;
use crate::memory::room;
use crate::summary::{Summary, to_words};
use crate::tokens::{HostTokens, integers};
use crate::view::{View, last_dimension};

/// An element type of both crates.
trait Float: xact::Element + WithDType {}
impl Float for f32 {}
impl Float for f16 {}
impl Float for bf16 {}

/// Evaluates `$body` with `$T` as the element type of a dtype.
macro_rules! with_float {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F16 => {
                type $T = f16;
                $body
            }
            DType::BF16 => {
                type $T = bf16;
                $body
            }
            other => bail!("{} is no type of xact", other.as_str()),
        }
    };
}

fn input<'a, T: Float>((storage, _): Operand<'a, CpuStorage>, view: View) -> Result<Input<'a, T>> {
    Ok(Input::rows(storage.as_slice::<T>()?, view.rows()))
}

/// The elements of a tensor that must have no gaps.
fn elements<'a, T: WithDType>((storage, layout): Operand<'a, CpuStorage>) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a tensor without gaps is needed, not {layout:?}")
    };
    match storage.as_slice::<T>()?.get(start..end) {
        Some(elements) => Ok(elements),
        None => bail!("a tensor extends beyond its storage: {layout:?}"),
    }
}

/// Computes y; returns it with its shape.
pub(crate) fn forward(
    call: &Call,
    tensors: &[Operand<'_, CpuStorage>],
    params: Operand<'_, CpuStorage>,
) -> Result<(CpuStorage, Shape)> {
    let params = elements::<f32>(params)?;
    let layouts: Vec<&Layout> = tensors.iter().map(|&(_, layout)| layout).collect();
    let shape = call.shape(layouts[0]);
    let dtype = tensors[0].0.dtype();
    let y = with_float!(dtype, T => {
        T::to_cpu_storage_owned(forward_of::<T>(call, tensors, &layouts, params)?)
    });
    Ok((y, shape))
}

fn forward_of<T: Float>(
    call: &Call,
    tensors: &[Operand<'_, CpuStorage>],
    layouts: &[&Layout],
    params: &[f32],
) -> Result<Vec<T>> {
    let at = call.operands(layouts)?;
    let mut y = room::<T>(at.y.rows * at.y.cols);
    if at.x.is_empty() {
        return Ok(y);
    }
    let out = Output::rows(&mut y, at.y.rows());
    let x = input::<T>(tensors[0], at.x)?;
    match (call.form, at.v) {
        (Form::Pair(order) | Form::Halves(order, _), Some(v)) => {
            let v = input::<T>(tensors[tensors.len() - 1], v)?;
            let op = call.op.as_gated().map_err(of_xact)?;
            cpu::gated_forward(op, order, Pair::new(x, v), params, out).run()
        }
        (Form::Interleaved(order, first, block), _) => {
            let op = call.op.as_gated().map_err(of_xact)?;
            let xv = Pair::interleaved(x, first, block);
            cpu::gated_forward(op, order, xv, params, out).run()
        }
        _ => cpu::forward(&call.op, x, params, out).run(),
    }
    .map_err(of_xact)?;
    Ok(y)
}

/// Computes all gradients in one pass.
pub(crate) fn backward(
    backward: &Backward<'_>,
    tensors: &[Operand<'_, CpuStorage>],
    dy: Operand<'_, CpuStorage>,
) -> Result<Written<CpuStorage>> {
    let params = backward.params.to_vec1::<f32>()?;
    let dtype = tensors[0].0.dtype();
    with_float!(dtype, T => backward_of::<T>(backward, tensors, dy, &params))
}

fn backward_of<T: Float>(
    backward: &Backward<'_>,
    tensors: &[Operand<'_, CpuStorage>],
    dy: Operand<'_, CpuStorage>,
    params: &[f32],
) -> Result<Written<CpuStorage>> {
    let Call { op, form } = &backward.call;
    let layouts: Vec<&Layout> = tensors.iter().map(|&(_, layout)| layout).collect();
    let at = backward.call.operands(&layouts)?;
    let mut dx = room::<T>(tensors[0].1.shape().elem_count());
    let mut dv = match form {
        Form::Pair(_) => Some(room::<T>(dx.len())),
        Form::Plain | Form::Halves(..) | Form::Interleaved(..) => None,
    };
    let mut dparams = backward.with_dparams().then(|| vec![0.0; params.len()]);
    if !at.x.is_empty() {
        let dy = Input::rows(elements::<T>(dy)?, at.y.rows());
        let x = input::<T>(tensors[0], at.x)?;
        match (*form, at.v) {
            (Form::Pair(order) | Form::Halves(order, _), Some(v)) => {
                let xv = Pair::new(x, input::<T>(tensors[tensors.len() - 1], v)?);
                let dxv = match (*form, &mut dv) {
                    (Form::Halves(_, halves), _) => {
                        PairMut::halves(&mut dx, at.x.rows, halves).map_err(of_xact)?
                    }
                    (_, Some(dv)) => PairMut::new(
                        Output::rows(&mut dx, at.dx.rows()),
                        Output::rows(dv, at.y.rows()),
                    ),
                    (_, None) => bail!("dv is missing"),
                };
                let op = op.as_gated().map_err(of_xact)?;
                let call = cpu::gated_backward(op, order, xv, dy, params, dxv);
                match &mut dparams {
                    Some(dparams) => call.gradients(dparams).run(),
                    None => call.run(),
                }
            }
            (Form::Interleaved(order, first, block), _) => {
                let xv = Pair::interleaved(x, first, block);
                let out = Output::rows(&mut dx, at.dx.rows());
                let dxv = PairMut::interleaved(out, first, block);
                let op = op.as_gated().map_err(of_xact)?;
                let call = cpu::gated_backward(op, order, xv, dy, params, dxv);
                match &mut dparams {
                    Some(dparams) => call.gradients(dparams).run(),
                    None => call.run(),
                }
            }
            _ => {
                let call = cpu::backward(op, x, dy, params, Output::rows(&mut dx, at.dx.rows()));
                match &mut dparams {
                    Some(dparams) => call.gradients(dparams).run(),
                    None => call.run(),
                }
            }
        }
        .map_err(of_xact)?;
    }
    Ok(Written {
        dx: T::to_cpu_storage_owned(dx),
        dv: dv.map(T::to_cpu_storage_owned),
        dparams: dparams.map(f32::to_cpu_storage_owned),
    })
}

/// The labels, weights and tokens of a loss.
struct Deciding {
    labels: Vec<i64>,
    weights: Option<Vec<f32>>,
    tokens: Option<HostTokens>,
}

impl Deciding {
    fn new(forward: &Forward) -> Result<Deciding> {
        let tokens = forward.goldfish.as_ref();
        Ok(Deciding {
            labels: integers(&forward.labels)?,
            weights: forward.weights.as_ref().map(Tensor::to_vec1).transpose()?,
            tokens: tokens
                .map(|(_, tokens)| HostTokens::new(tokens))
                .transpose()?,
        })
    }
}

/// Sets the weights and the tokens of a call.
macro_rules! decide {
    ($call:ident, $forward:expr, $rows:expr) => {
        if let Some(weights) = &$rows.weights {
            $call = $call.weights(weights);
        }
        if let (Some((goldfish, _)), Some(tokens)) = (&$forward.goldfish, &$rows.tokens) {
            $call = $call.goldfish(&goldfish.goldfish, tokens.tokens());
        }
    };
}

/// The rows of the logits.
fn logits_view(layout: &Layout) -> Result<View> {
    match last_dimension(layout, true) {
        Some(view) => Ok(view),
        // `record` copies logits that have no such rows.
        None => bail!("cross_entropy does not take logits with the layout {layout:?}"),
    }
}

/// Computes the loss and the other results that are wanted.
pub(crate) fn cross_entropy(
    forward: &Forward,
    logits: Operand<'_, CpuStorage>,
) -> Result<Results<CpuStorage>> {
    with_float!(logits.0.dtype(), T => cross_entropy_of::<T>(forward, logits))
}

fn cross_entropy_of<T: Float>(
    forward: &Forward,
    logits: Operand<'_, CpuStorage>,
) -> Result<Results<CpuStorage>> {
    let rows = Deciding::new(forward)?;
    let n = rows.labels.len();
    let normalizer = forward.normalizer.as_ref().map(Tensor::to_vec1::<f32>);
    let normalizer = normalizer.transpose()?;
    let per_row = || vec![0.0_f32; n];
    let Wanted { rows: all, saved } = forward.wanted;
    let mut losses = (all || forward.reduction == Reduction::None).then(per_row);
    let mut z_loss = all.then(per_row);
    let mut lse = all.then(per_row);
    let mut argmax = all.then(|| vec![0_i32; n]);
    let mut saved = saved.then(|| vec![0_u8; forward.op.saved_bytes(n as u64) as usize]);
    let tensor = input::<T>(logits, logits_view(logits.1)?)?;
    let mut call = cpu::cross_entropy::forward(&forward.op, tensor, &rows.labels);
    decide!(call, forward, rows);
    if let Some(losses) = &mut losses {
        call = call.loss(losses);
    }
    if let Some(z_loss) = &mut z_loss {
        call = call.z_loss(z_loss);
    }
    if let Some(lse) = &mut lse {
        call = call.lse(lse);
    }
    if let Some(argmax) = &mut argmax {
        call = call.argmax(argmax);
    }
    if let Some(saved) = &mut saved {
        call = call.saved(saved);
    }
    if let Some(&[normalizer]) = normalizer.as_deref() {
        call = call.normalizer(normalizer);
    }
    let summary = call.run().map_err(of_xact)?;
    let losses = losses.map(CpuStorage::F32);
    let (loss, losses) = match (forward.reduction, losses) {
        (Reduction::None, Some(losses)) => (losses, None),
        (_, losses) => (CpuStorage::F32(vec![summary.mean]), losses),
    };
    let rows = match (z_loss, lse, argmax) {
        (Some(z_loss), Some(lse), Some(argmax)) => Some((
            losses,
            CpuStorage::F32(z_loss),
            CpuStorage::F32(lse),
            CpuStorage::I32(argmax),
        )),
        _ => None,
    };
    Ok(Results {
        loss,
        rows,
        saved: saved.map(CpuStorage::U8),
        summary: CpuStorage::U32(to_words(&summary).to_vec()),
    })
}

/// Computes the gradient of the logits.
pub(crate) fn cross_entropy_gradient(
    gradient: &Gradient<'_>,
    logits: Operand<'_, CpuStorage>,
) -> Result<CpuStorage> {
    with_float!(logits.0.dtype(), T => {
        Ok(T::to_cpu_storage_owned(gradient_of::<T>(gradient, logits)?))
    })
}

fn gradient_of<T: Float>(
    gradient: &Gradient<'_>,
    logits: Operand<'_, CpuStorage>,
) -> Result<Vec<T>> {
    let &Gradient {
        forward,
        made,
        ref dloss,
    } = gradient;
    let rows = Deciding::new(forward)?;
    let saved = made.saved.as_ref().map(Tensor::to_vec1::<u8>).transpose()?;
    let saved = saved.unwrap_or_default();
    let divisor = Summary(made.summary.clone()).read()?.normalizer;
    let dloss = dloss.to_vec1::<f32>()?;
    let view = logits_view(logits.1)?;
    let mut dlogits = room::<T>(view.rows * view.cols);
    let tensor = input::<T>(logits, view)?;
    let out = Output::rows(&mut dlogits, View::dense(view.rows, view.cols).rows());
    let mut call =
        cpu::cross_entropy::backward(&forward.op, tensor, &rows.labels, &saved, divisor, out)
            .dloss(&dloss);
    decide!(call, forward, rows);
    call.run().map_err(of_xact)?;
    Ok(dlogits)
}
