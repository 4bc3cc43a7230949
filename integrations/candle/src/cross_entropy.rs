//! Cross-entropy as a differentiable op of candle.

use std::sync::{Arc, OnceLock};

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Storage, Tensor, bail,
};
use xact::{CrossEntropy, Normalizer};

use crate::error::{FLOATS, check_device, check_dtype, check_shape, of_xact};
use crate::summary::{Summary, WORDS};
use crate::tokens::{DeviceGoldfish, Tokens};
use crate::view::{fitted, last_dimension};

/// How the losses of the rows are reduced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// The sum of the losses, divided by the normaliser: `[] f32`. [`CrossEntropy::normalizer`] says what the normaliser is,
    /// unless [`CrossEntropyCall::normalizer`] sets a number.
    #[default]
    Mean,
    /// The sum of the losses: `[] f32`.
    Sum,
    /// The losses themselves: f32 in the shape of the labels.
    None,
}

/// Prepares the loss of `logits`, `[.., V]` in f32, f16 or bf16, for `labels`, `[..]` in u32, i32 or i64. The methods of
/// the call set optional arguments; [`run`](CrossEntropyCall::run) computes the loss.
///
/// A label that is neither a class nor [`ignore_index`](CrossEntropy::ignore_index) is not an error, because an error
/// would have to wait for the device. The loss and the gradient of its row are NaN, and
/// [`bad_row`](xact::CrossEntropySummary::bad_row) of the summary reports the row. u32 labels are never negative:
/// 4,294,967,196 is not −100.
///
/// The forward saves 20 bytes for each row. The backward reads them and the logits. The logits may be any view. Rows with
/// a pitch are read in place, and so is `logits.narrow(1, 0, s - 1)` of `[B, S, V]` logits. Other views are copied first.
pub fn cross_entropy<'a>(
    op: &'a CrossEntropy,
    logits: &'a Tensor,
    labels: &'a Tensor,
) -> CrossEntropyCall<'a> {
    CrossEntropyCall {
        op,
        logits,
        labels,
        reduction: Reduction::default(),
        weights: None,
        goldfish: None,
        normalizer: None,
    }
}

/// A call of [`cross_entropy`].
#[derive(Clone, Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct CrossEntropyCall<'a> {
    op: &'a CrossEntropy,
    logits: &'a Tensor,
    labels: &'a Tensor,
    reduction: Reduction,
    weights: Option<&'a Tensor>,
    goldfish: Option<(&'a DeviceGoldfish, Tokens)>,
    normalizer: Option<&'a Tensor>,
}

/// The loss and the other results of a forward. Only `loss` is differentiable.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outputs {
    /// The loss, reduced as [`Reduction`] says.
    pub loss: Tensor,
    /// The loss of each row, weighted and not normalised: f32 in the shape of the labels.
    pub losses: Tensor,
    /// The z-loss in each loss: f32 in the shape of the labels.
    pub z_loss: Tensor,
    /// log Σ e^z of each row: f32 in the shape of the labels. It is 0 for a masked row.
    pub lse: Tensor,
    /// The class of the largest logit of each row: i32 in the shape of the labels. It is −1 for a masked row.
    pub argmax: Tensor,
    /// The totals.
    pub summary: Summary,
}

impl<'a> CrossEntropyCall<'a> {
    /// Sets how the losses are reduced.
    pub fn reduction(mut self, reduction: Reduction) -> Self {
        self.reduction = reduction;
        self
    }

    /// Sets the weights of the rows: f32 in the shape of the labels. A row of weight 0 is masked. Weights receive no
    /// gradient.
    pub fn weights(mut self, weights: &'a Tensor) -> Self {
        self.weights = Some(weights);
        self
    }

    /// Drops rows by Goldfish, which decides from `tokens`.
    pub fn goldfish(mut self, goldfish: &'a DeviceGoldfish, tokens: Tokens) -> Self {
        self.goldfish = Some((goldfish, tokens));
        self
    }

    /// Sets the normaliser of the mean: one f32 on the device of the logits, for example the number of tokens in all
    /// micro-batches of a step.
    pub fn normalizer(mut self, normalizer: &'a Tensor) -> Self {
        self.normalizer = Some(normalizer);
        self
    }

    /// Computes the loss.
    ///
    /// # Errors
    /// A dtype, a shape or a device is wrong; an option is out of its range; or an error of xact or candle.
    pub fn run(self) -> Result<Tensor> {
        Ok(self.record(false)?.0)
    }

    /// Computes the loss and all other results of the forward.
    ///
    /// # Errors
    /// The errors of [`run`](CrossEntropyCall::run).
    pub fn run_with_outputs(self) -> Result<Outputs> {
        let (loss, made) = self.record(true)?;
        let (Some(rows), Some(made)) = (made.get().and_then(|made| made.rows.clone()), made.get())
        else {
            bail!("the forward has left no outputs")
        };
        Ok(Outputs {
            losses: rows.losses.unwrap_or_else(|| loss.detach()),
            loss,
            z_loss: rows.z_loss,
            lse: rows.lse,
            argmax: rows.argmax,
            summary: Summary(made.summary.clone()),
        })
    }

    fn record(self, with_rows: bool) -> Result<(Tensor, Arc<OnceLock<Made>>)> {
        let CrossEntropyCall {
            op,
            logits,
            labels,
            reduction,
            weights,
            goldfish,
            normalizer,
        } = self;
        check_dtype("logits", logits, &FLOATS)?;
        check_dtype("labels", labels, &[DType::U32, DType::I32, DType::I64])?;
        check_device("labels", labels, logits)?;
        let Some((_, rows)) = logits.dims().split_last() else {
            bail!("logits are a scalar; they must be [.., V]")
        };
        check_shape("labels", labels, rows)?;
        if let Some(weights) = weights {
            check_dtype("weights", weights, &[DType::F32])?;
            check_shape("weights", weights, rows)?;
            check_device("weights", weights, logits)?;
        }
        if let Some(normalizer) = normalizer {
            if reduction != Reduction::Mean {
                bail!("a normalizer is given, but only the mean is divided by it; leave it out");
            }
            check_dtype("the normalizer", normalizer, &[DType::F32])?;
            check_device("the normalizer", normalizer, logits)?;
            if normalizer.elem_count() != 1 {
                bail!(
                    "the normalizer is {:?}; it must have one element",
                    normalizer.dims()
                );
            }
        }
        if let Some((_, tokens)) = &goldfish {
            tokens.check(logits)?;
        }
        let op = match reduction {
            Reduction::Mean => *op,
            Reduction::Sum | Reduction::None => op.normalizer(Normalizer::None),
        };
        op.check().map_err(of_xact)?;
        let line = |tensor: &Tensor| tensor.detach().flatten_all()?.contiguous();
        let logits = fitted(logits, |layout| last_dimension(layout, true).is_some())?;
        let made = Arc::new(OnceLock::new());
        let forward = Forward {
            op,
            reduction,
            shape: labels.shape().clone(),
            labels: line(labels)?,
            weights: weights.map(line).transpose()?,
            goldfish: goldfish.map(|(goldfish, tokens)| (goldfish.clone(), tokens)),
            normalizer: normalizer.map(line).transpose()?,
            wanted: Wanted {
                rows: with_rows,
                saved: logits.track_op(),
            },
            made: made.clone(),
        };
        Ok((logits.apply_op1(forward)?, made))
    }
}

/// A forward with checked arguments, and its results for the backward.
pub(crate) struct Forward {
    pub(crate) op: CrossEntropy,
    pub(crate) reduction: Reduction,
    /// The shape of the labels.
    shape: Shape,
    /// `[N]`, like the weights.
    pub(crate) labels: Tensor,
    pub(crate) weights: Option<Tensor>,
    pub(crate) goldfish: Option<(DeviceGoldfish, Tokens)>,
    pub(crate) normalizer: Option<Tensor>,
    pub(crate) wanted: Wanted,
    made: Arc<OnceLock<Made>>,
}

/// Which results a forward computes besides the loss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) rows: bool,
    pub(crate) saved: bool,
}

/// The results of a forward.
pub(crate) struct Results<S> {
    /// One element, or one for each row.
    pub(crate) loss: S,
    /// Losses (unless they are `loss`), z-losses, lse and argmax.
    pub(crate) rows: Option<(Option<S>, S, S, S)>,
    /// The saved bytes that the backward needs.
    pub(crate) saved: Option<S>,
    /// `[WORDS] u32`.
    pub(crate) summary: S,
}

/// The results of a forward besides the loss, as tensors.
pub(crate) struct Made {
    rows: Option<Rows>,
    pub(crate) saved: Option<Tensor>,
    pub(crate) summary: Tensor,
}

#[derive(Clone)]
struct Rows {
    losses: Option<Tensor>,
    z_loss: Tensor,
    lse: Tensor,
    argmax: Tensor,
}

impl Forward {
    /// Keeps the other results, and returns the loss with its shape.
    fn keep<S>(&self, results: Results<S>, wrap: impl Fn(S) -> Storage) -> (S, Shape) {
        let tensor =
            |s: S, shape: &Shape| Tensor::from_storage(wrap(s), shape, BackpropOp::none(), false);
        let rows = results.rows.map(|(losses, z_loss, lse, argmax)| Rows {
            losses: losses.map(|losses| tensor(losses, &self.shape)),
            z_loss: tensor(z_loss, &self.shape),
            lse: tensor(lse, &self.shape),
            argmax: tensor(argmax, &self.shape),
        });
        let bytes = self.op.saved_bytes(self.labels.elem_count() as u64) as usize;
        let made = Made {
            rows,
            saved: results.saved.map(|s| tensor(s, &bytes.into())),
            summary: tensor(results.summary, &WORDS.into()),
        };
        // candle runs a forward once.
        let _ = self.made.set(made);
        let shape = match self.reduction {
            Reduction::Mean | Reduction::Sum => ().into(),
            Reduction::None => self.shape.clone(),
        };
        (results.loss, shape)
    }
}

impl CustomOp1 for Forward {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let results = crate::cpu::cross_entropy(self, (logits, layout))?;
        Ok(self.keep(results, Storage::Cpu))
    }

    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let results = crate::cuda::cross_entropy(self, (logits, layout))?;
        Ok(self.keep(results, Storage::Cuda))
    }

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, dloss: &Tensor) -> Result<Option<Tensor>> {
        let Some(made) = self.made.get() else {
            bail!("the forward of this loss has not run")
        };
        let gradient = Gradient {
            forward: self,
            made,
            dloss: dloss.flatten_all()?.contiguous()?,
        };
        logits.apply_op1_no_bwd(&gradient).map(Some)
    }
}

/// The op that computes the gradient of the logits.
pub(crate) struct Gradient<'a> {
    pub(crate) forward: &'a Forward,
    pub(crate) made: &'a Made,
    /// `[1]`, or `[N]` without a reduction.
    pub(crate) dloss: Tensor,
}

impl CustomOp1 for Gradient<'_> {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let gradient = crate::cpu::cross_entropy_gradient(self, (logits, layout))?;
        Ok((gradient, layout.shape().clone()))
    }

    fn cuda_fwd(&self, logits: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let gradient = crate::cuda::cross_entropy_gradient(self, (logits, layout))?;
        Ok((gradient, layout.shape().clone()))
    }
}
