//! Cross-entropy on a device.

use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};

use super::CrossEntropy;
use crate::device::{Device, Workspace};
use crate::dtype::Element;
use crate::error::Result;
use crate::loss::goldfish::TokenId;
use crate::loss::goldfish::device::{DeviceGoldfish, DeviceTokens};
use crate::raw;
use crate::tensor::{Input, Output};

pub use super::Shard;
pub use crate::launch::{CrossEntropySummary, RowStats};
pub use crate::raw::cross_entropy::workspace_bytes;

/// What decides about the rows of a call. `L` is i32 or i64.
#[derive(Clone, Copy)]
pub struct Rows<'a, L> {
    /// `[N]`: the class of each row, or [`ignore_index`](CrossEntropy::ignore_index).
    pub labels: &'a dyn DevicePtr<L>,
    /// `[N]`: weights; a row of weight 0 is masked. Negative ones are legal; a NaN makes its row NaN.
    pub weights: Option<&'a dyn DevicePtr<f32>>,
    /// Which rows are dropped.
    pub goldfish: Option<Goldfish<'a, L>>,
    /// Set where the columns are those of one rank of several;
    /// [`vocab`](CrossEntropy::vocab) is then the rank's own number of classes.
    pub shard: Option<Shard>,
}

impl<'a, L> Rows<'a, L> {
    /// Rows with labels and nothing else.
    pub fn new(labels: &'a dyn DevicePtr<L>) -> Self {
        Rows {
            labels,
            weights: None,
            goldfish: None,
            shard: None,
        }
    }
}

/// A Goldfish decision inside the loss: no mask tensor is made.
#[derive(Clone, Copy)]
pub struct Goldfish<'a, L> {
    /// The strategy, with its tables on the device.
    pub strategy: &'a DeviceGoldfish,
    /// The ids that decide, one for each row. They need not be the labels: labels that are masked otherwise
    /// still have an id.
    pub tokens: DeviceTokens<'a, L>,
}

/// Where the results of a forward go.
pub struct Outputs<'a> {
    /// `[N]`: losses, weighted but not normalised; 0 of a masked row, NaN of one whose label is no class.
    pub loss: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N]`: the part of each loss that is z-loss.
    pub z_loss: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N]`: log Σ e^z; 0 of a masked row.
    pub lse: Option<&'a mut dyn DevicePtrMut<f32>>,
    /// `[N]`: the class of the largest logit, the first of several; −1 of a masked row. It makes
    /// [`correct`](CrossEntropySummary::correct) be counted. Of a row with NaN it is the largest of the others.
    pub argmax: Option<&'a mut dyn DevicePtrMut<i32>>,
    /// `[N]`: what the backward needs.
    pub stats: &'a mut dyn DevicePtrMut<RowStats>,
    /// One: what the batch comes to.
    pub summary: &'a mut dyn DevicePtrMut<CrossEntropySummary>,
}

/// The gradients with respect to the losses: of row r it is element `r·stride`.
#[derive(Clone, Copy)]
pub struct Dloss<'a> {
    /// The gradients.
    pub buffer: &'a dyn DevicePtr<f32>,
    /// 0 for one that all rows share, 1 for one of each, or any other.
    pub stride: usize,
}

/// What a backward divides gradients by.
#[derive(Clone, Copy)]
pub enum Divisor<'a> {
    /// 1.
    One,
    /// What the forward divided the mean by: [`normalizer`](CrossEntropySummary::normalizer).
    Summary(&'a dyn DevicePtr<CrossEntropySummary>),
    /// A scalar of the caller's.
    Scalar(&'a dyn DevicePtr<f32>),
}

/// The tensors of [`CrossEntropy::forward`].
pub struct Forward<'a, T, L> {
    /// `[N, V]`, N being the number of labels.
    pub logits: Input<'a, T>,
    /// The rows.
    pub rows: Rows<'a, L>,
    /// The results.
    pub outputs: Outputs<'a>,
    /// One, for [`Normalizer::External`](super::Normalizer::External).
    pub normalizer: Option<&'a dyn DevicePtr<f32>>,
    /// Of this stream, at least [`workspace_bytes`].
    pub workspace: &'a mut Workspace,
}

/// The tensors of [`CrossEntropy::forward_with_gradient`].
pub struct ForwardWithGradient<'a, T, L> {
    /// `[N, V]`, overwritten with the gradients.
    pub logits: Output<'a, T>,
    /// The rows.
    pub rows: Rows<'a, L>,
    /// The results.
    pub outputs: Outputs<'a>,
    /// One, for [`Normalizer::External`](super::Normalizer::External).
    pub normalizer: Option<&'a dyn DevicePtr<f32>>,
    /// What gradients are multiplied with; `None` for 1.
    pub dloss: Option<Dloss<'a>>,
    /// Of this stream, at least [`workspace_bytes`].
    pub workspace: &'a mut Workspace,
}

/// The tensors of [`CrossEntropy::backward`].
pub struct Backward<'a, T, L> {
    /// The logits of the forward.
    pub logits: Input<'a, T>,
    /// The rows of the forward.
    pub rows: Rows<'a, L>,
    /// `[ranks, N]`: the stats of the forward, or those of all ranks in their order.
    pub stats: &'a dyn DevicePtr<RowStats>,
    /// `[N, V]`, overwritten; 0 in the columns that are no classes.
    pub dlogits: Output<'a, T>,
    /// What gradients are divided by.
    pub divisor: Divisor<'a>,
    /// What gradients are multiplied with; `None` for 1.
    pub dloss: Option<Dloss<'a>>,
}

/// The tensors of [`CrossEntropy::backward_in_place`].
pub struct BackwardInPlace<'a, T, L> {
    /// The logits of the forward, overwritten with the gradients.
    pub logits: Output<'a, T>,
    /// The rows of the forward.
    pub rows: Rows<'a, L>,
    /// `[ranks, N]`: the stats of the forward, or those of all ranks in their order.
    pub stats: &'a dyn DevicePtr<RowStats>,
    /// What gradients are divided by.
    pub divisor: Divisor<'a>,
    /// What gradients are multiplied with; `None` for 1.
    pub dloss: Option<Dloss<'a>>,
}

/// The tensors of [`CrossEntropy::partial_stats`].
pub struct PartialStats<'a, T, L> {
    /// `[N, V of the rank]`.
    pub logits: Input<'a, T>,
    /// The rows, with their [`shard`](Rows::shard).
    pub rows: Rows<'a, L>,
    /// Whether the argmax will be asked for.
    pub with_argmax: bool,
    /// `[N]`: 20 bytes each, to be gathered from all ranks.
    pub stats: &'a mut dyn DevicePtrMut<RowStats>,
    /// Of this stream, at least [`workspace_bytes`].
    pub workspace: &'a mut Workspace,
}

/// The tensors of [`CrossEntropy::finish`].
pub struct Finish<'a, L> {
    /// The rows, with their [`shard`](Rows::shard).
    pub rows: Rows<'a, L>,
    /// `[ranks, N]`: the stats of all ranks in their order.
    pub gathered: &'a dyn DevicePtr<RowStats>,
    /// The results, the same on every rank; the stats are those of whole rows.
    pub outputs: Outputs<'a>,
    /// One, for [`Normalizer::External`](super::Normalizer::External).
    pub normalizer: Option<&'a dyn DevicePtr<f32>>,
    /// Of this stream, at least [`workspace_bytes`].
    pub workspace: &'a mut Workspace,
}

impl CrossEntropy {
    /// Losses, statistics and the summary. The logits are read once.
    ///
    /// # Errors
    /// [`Option`](crate::Error::Option), [`Classes`](crate::Error::Classes) (no classes, or not those of the
    /// logits), [`Length`](crate::Error::Length) (a tensor is not as long as it must be),
    /// [`Pitch`](crate::Error::Pitch), [`TooLarge`](crate::Error::TooLarge),
    /// [`Overlap`](crate::Error::Overlap), [`WrongContext`](crate::Error::WrongContext),
    /// [`Workspace`](crate::Error::Workspace), [`WrongStream`](crate::Error::WrongStream),
    /// [`Null`](crate::Error::Null) (the external normaliser is not given), or what loading and launching say.
    /// Nothing is written then.
    pub fn forward<T: Element, L: TokenId>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: Forward<'_, T, L>,
    ) -> Result<()> {
        raw::cross_entropy::safe::forward(self, device, stream, call)
    }

    /// The same, and the logits overwritten with their gradients. The logits are read once and written once where a
    /// row fits into the shared memory of a cluster of 8 blocks (compute capability 9.0 and later; of 4 or 2 where no
    /// more are resident at once, as in a small instance of MIG), or, if there are more than 512 rows, of one block;
    /// else, and where the rows are few and long, they are read twice.
    /// [`forward_with_gradient`](crate::raw::cross_entropy::forward_with_gradient) of `raw` has the numbers.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_with_gradient<T: Element, L: TokenId>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: ForwardWithGradient<'_, T, L>,
    ) -> Result<()> {
        raw::cross_entropy::safe::forward_with_gradient(self, device, stream, call)
    }

    /// The gradients, from the stats of a forward with the same options and rows. The logits are read once.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward<T: Element, L: TokenId>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: Backward<'_, T, L>,
    ) -> Result<()> {
        raw::cross_entropy::safe::backward(self, device, stream, call)
    }

    /// The same, over the logits.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward_in_place<T: Element, L: TokenId>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: BackwardInPlace<'_, T, L>,
    ) -> Result<()> {
        raw::cross_entropy::safe::backward_in_place(self, device, stream, call)
    }

    /// The stats of a rank's columns, for [`finish`](Self::finish) and [`backward`](Self::backward) once those
    /// of all ranks are gathered.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn partial_stats<T: Element, L: TokenId>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: PartialStats<'_, T, L>,
    ) -> Result<()> {
        raw::cross_entropy::safe::partial_stats(self, device, stream, call)
    }

    /// Losses and the summary from the stats of all ranks, the same bits on every rank.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn finish<L: TokenId>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: Finish<'_, L>,
    ) -> Result<()> {
        raw::cross_entropy::safe::finish(self, device, stream, call)
    }
}
