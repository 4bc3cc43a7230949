//! Cross-entropy on a device: forward, backward, both in one call, and the parts for a sharded vocabulary.
//!
//! The caller allocates the summary, and the statistics that a forward saves for the backward, in device memory:
//!
//! ```no_run
//! # use xact::{CrossEntropy, Queue, cudarc::driver::CudaContext};
//! use xact::cuda::cross_entropy;
//! # let stream = CudaContext::new(0)?.new_stream()?;
//! # let mut queue = Queue::new(&stream)?;
//! # let mut logits = stream.alloc_zeros::<f32>(8 * 1000)?;
//! # let labels = stream.alloc_zeros::<i64>(8)?;
//! let op = CrossEntropy::default();
//! let mut summary = stream.alloc_zeros(1)?;
//! let call = cross_entropy::forward_with_gradient(&op, &mut logits, &labels, &mut summary);
//! queue.reserve(call.workspace_bytes()?)?;
//! call.launch(&mut queue)?;
//! let mean = stream.clone_dtoh(&summary)?[0].mean;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![allow(unsafe_code)] // the safe calls of `raw`; each block says what it guarantees

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};

use super::device::Device;
use super::goldfish::{DeviceGoldfish, DeviceTokens, Ids, check_tables, decision};
use super::queue::{Parts, Queue};
use super::raw::CUdeviceptr;
use super::raw::cross_entropy as raw;
use super::raw::goldfish::IdType;
use super::tensor::{Addresses, Input, Output};
use crate::blocks::{CrossEntropySummary, LogitsMatrix, RowStats};
use crate::dtype::Element;
use crate::error::{Result, check_length};
use crate::loss::cross_entropy::{CrossEntropy, Label, Shard, dloss_stride};
use crate::loss::goldfish::TokenId;
use crate::shape::{Rows as Place, Shape};

// SAFETY: structs of numbers without padding, laid out by the C rules on both sides.
unsafe impl DeviceRepr for RowStats {}
// SAFETY: as above.
unsafe impl DeviceRepr for CrossEntropySummary {}
// SAFETY: every field is a number, of which all bits zero is one.
unsafe impl ValidAsZeroBits for RowStats {}
// SAFETY: as above.
unsafe impl ValidAsZeroBits for CrossEntropySummary {}

/// The number by which a backward divides the gradients.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Divisor<'a> {
    /// 1.
    One,
    /// The [`normalizer`](CrossEntropySummary::normalizer) in the summary of the forward, `[1] CrossEntropySummary`.
    Summary(Input<'a, CrossEntropySummary>),
    /// A scalar of the caller, `[1] f32`.
    Scalar(Input<'a, f32>),
}

impl<'a> Divisor<'a> {
    /// The normaliser in the summary of the forward, `[1] CrossEntropySummary`.
    pub fn summary(summary: impl Into<Input<'a, CrossEntropySummary>>) -> Self {
        Divisor::Summary(summary.into())
    }

    /// A scalar of the caller, `[1] f32`.
    pub fn scalar(scalar: impl Into<Input<'a, f32>>) -> Self {
        Divisor::Scalar(scalar.into())
    }

    fn check(&self, device: &Device) -> Result<()> {
        match self {
            Divisor::One => Ok(()),
            Divisor::Summary(summary) => summary.check_line("summary", device, 1),
            Divisor::Scalar(scalar) => scalar.check_line("the normalizer", device, 1),
        }
    }

    fn resolve<'b>(&'b self, addresses: &mut Addresses<'b>) -> Option<CUdeviceptr> {
        match self {
            Divisor::One => None,
            Divisor::Summary(summary) => {
                let offset = std::mem::offset_of!(CrossEntropySummary, normalizer) as u64;
                Some(addresses.input(summary) + offset)
            }
            Divisor::Scalar(scalar) => Some(addresses.input(scalar)),
        }
    }
}

/// The inputs that decide which rows are kept.
struct Rows<'a, L> {
    labels: Input<'a, L>,
    weights: Option<Input<'a, f32>>,
    goldfish: Option<(&'a DeviceGoldfish, Box<dyn Ids + 'a>)>,
    shard: Option<Shard>,
}

impl<'a, L: Label> Rows<'a, L> {
    fn new(labels: impl Into<Input<'a, L>>) -> Self {
        Rows {
            labels: labels.into(),
            weights: None,
            goldfish: None,
            shard: None,
        }
    }

    /// The number of rows.
    fn count(&self) -> usize {
        self.labels.len()
    }

    fn check(&self, device: &Device) -> Result<()> {
        let n = self.count();
        self.labels.check_line("labels", device, n)?;
        if let Some(weights) = &self.weights {
            weights.check_line("weights", device, n)?;
        }
        if let Some((goldfish, tokens)) = &self.goldfish {
            check_tables(goldfish, device)?;
            tokens.check(device)?;
            check_length("hash_ids", n, tokens.len())?;
        }
        Ok(())
    }

    fn resolve<'b>(&'b self, addresses: &mut Addresses<'b>) -> raw::Rows<'b> {
        raw::Rows {
            rows: self.count() as u64,
            labels: addresses.input(&self.labels),
            label_type: IdType::of::<L>(),
            weights: self
                .weights
                .as_ref()
                .map(|weights| addresses.input(weights)),
            goldfish: self.goldfish.as_ref().map(|(goldfish, tokens)| {
                let tokens = tokens.resolve(addresses);
                decision(goldfish, tokens, addresses)
            }),
            shard: self.shard,
            blocks: super::raw::Blocks::All,
        }
    }
}

/// The outputs of a forward, and its normaliser.
struct Outputs<'a> {
    loss: Option<Output<'a, f32>>,
    z_loss: Option<Output<'a, f32>>,
    lse: Option<Output<'a, f32>>,
    argmax: Option<Output<'a, i32>>,
    saved: Option<Output<'a, u8>>,
    summary: Output<'a, CrossEntropySummary>,
    /// The normaliser, if the caller gives one.
    normalizer: Option<Input<'a, f32>>,
}

impl<'a> Outputs<'a> {
    fn new(summary: impl Into<Output<'a, CrossEntropySummary>>) -> Self {
        Outputs {
            loss: None,
            z_loss: None,
            lse: None,
            argmax: None,
            saved: None,
            summary: summary.into(),
            normalizer: None,
        }
    }

    fn check(&self, op: &CrossEntropy, device: &Device, n: usize) -> Result<()> {
        let f32s = [
            ("loss", &self.loss),
            ("z_loss", &self.z_loss),
            ("lse", &self.lse),
        ];
        for (what, output) in f32s {
            if let Some(output) = output {
                output.check_line(what, device, n)?;
            }
        }
        if let Some(argmax) = &self.argmax {
            argmax.check_line("argmax", device, n)?;
        }
        if let Some(saved) = &self.saved {
            saved.check_line("saved", device, op.saved_bytes(n as u64) as usize)?;
        }
        self.summary.check_line("summary", device, 1)?;
        match &self.normalizer {
            Some(normalizer) => normalizer.check_line("the normalizer", device, 1),
            None => Ok(()),
        }
    }

    /// The device pointers of the outputs and of the normaliser.
    fn resolve<'b>(
        &'b mut self,
        addresses: &mut Addresses<'b>,
    ) -> (raw::Outputs, Option<CUdeviceptr>) {
        let outputs = raw::Outputs {
            loss: self.loss.as_mut().map(|loss| addresses.output(loss)),
            z_loss: self.z_loss.as_mut().map(|z_loss| addresses.output(z_loss)),
            lse: self.lse.as_mut().map(|lse| addresses.output(lse)),
            argmax: self.argmax.as_mut().map(|argmax| addresses.output(argmax)),
            saved: self.saved.as_mut().map(|saved| addresses.output(saved)),
            summary: addresses.output(&mut self.summary),
        };
        let normalizer = self.normalizer.as_ref().map(|n| addresses.input(n));
        (outputs, normalizer)
    }
}

/// The upstream gradients: the one of row r is element `r·stride`.
#[derive(Clone, Copy)]
struct UpstreamGradient<'a> {
    values: Input<'a, f32>,
    /// `None`: 0 if there is one element, otherwise 1.
    stride: Option<usize>,
}

/// Checks the upstream gradients, and returns them with their stride.
fn check_dloss<'a>(
    dloss: Option<UpstreamGradient<'a>>,
    device: &Device,
    rows: usize,
) -> Result<Option<(Input<'a, f32>, usize)>> {
    let Some(UpstreamGradient { values, stride }) = dloss else {
        return Ok(None);
    };
    let len = values.len();
    values.check_line("dloss", device, len)?;
    Ok(Some((values, dloss_stride(stride, rows, len)?)))
}

fn upstream<'b>(
    dloss: &'b Option<(Input<'_, f32>, usize)>,
    addresses: &mut Addresses<'b>,
) -> raw::Upstream {
    (dloss.as_ref()).map_or(raw::Upstream::default(), |(values, stride)| raw::Upstream {
        dloss: Some(addresses.input(values)),
        // The stride is less than the number of elements of a buffer, so it fits.
        stride: *stride as i64,
    })
}

/// The setters of the weights and of Goldfish.
macro_rules! row_setters {
    () => {
        /// Sets the weights of the rows, `[N] f32`. A row of weight 0 is masked. Negative weights are legal, and a NaN
        /// makes the loss and the gradient of its row NaN.
        pub fn weights(mut self, weights: impl Into<Input<'a, f32>>) -> Self {
            self.rows.weights = Some(weights.into());
            self
        }

        /// Drops rows by a Goldfish decision inside the kernel, without a mask tensor. `tokens` have one id for each row.
        /// The ids may differ from the labels and have another type: give the true ids where labels are ignored.
        pub fn goldfish<I: TokenId>(
            mut self,
            goldfish: &'a DeviceGoldfish,
            tokens: DeviceTokens<'a, I>,
        ) -> Self {
            self.rows.goldfish = Some((goldfish, Box::new(tokens)));
            self
        }
    };
}

/// The setters of the outputs of a forward.
macro_rules! output_setters {
    () => {
        /// Sets an output for the loss of each row, `[N] f32`: weighted and not divided by the normaliser. It is 0 for a
        /// masked row, and NaN for a row whose label is not a class.
        pub fn loss(mut self, loss: impl Into<Output<'a, f32>>) -> Self {
            self.outputs.loss = Some(loss.into());
            self
        }

        /// Sets an output for the z-loss of each row, `[N] f32`, which is part of the loss.
        pub fn z_loss(mut self, z_loss: impl Into<Output<'a, f32>>) -> Self {
            self.outputs.z_loss = Some(z_loss.into());
            self
        }

        /// Sets an output for lse = log Σ e^z of each row, `[N] f32`. It is 0 for a masked row.
        pub fn lse(mut self, lse: impl Into<Output<'a, f32>>) -> Self {
            self.outputs.lse = Some(lse.into());
            self
        }

        /// Sets an output for the class of the largest logit of each row, `[N] i32`: the first of equal ones, ignoring NaN.
        /// It is −1 for a masked row. With it, the summary counts the [`correct`](CrossEntropySummary::correct) rows.
        pub fn argmax(mut self, argmax: impl Into<Output<'a, i32>>) -> Self {
            self.outputs.argmax = Some(argmax.into());
            self
        }

        /// Sets an output for the statistics that the backward needs, `[saved_bytes] u8`: see
        /// [`saved_bytes`](CrossEntropy::saved_bytes).
        pub fn saved(mut self, saved: impl Into<Output<'a, u8>>) -> Self {
            self.outputs.saved = Some(saved.into());
            self
        }

        /// Sets the normaliser, `[1] f32`, which is used instead of the option
        /// [`normalizer`](CrossEntropy::normalizer).
        pub fn normalizer(mut self, normalizer: impl Into<Input<'a, f32>>) -> Self {
            self.outputs.normalizer = Some(normalizer.into());
            self
        }
    };
}

/// The setters of the upstream gradient.
macro_rules! dloss_setters {
    () => {
        /// Sets the upstream gradient, by which the gradients are multiplied: `[N] f32`, one for each row, or `[1] f32`, one
        /// for all rows. Without it, the upstream gradient is 1.
        pub fn dloss(mut self, dloss: impl Into<Input<'a, f32>>) -> Self {
            self.dloss = Some(UpstreamGradient {
                values: dloss.into(),
                stride: None,
            });
            self
        }

        /// Sets the upstream gradient with a stride: the one of row r is element `r·stride`.
        pub fn dloss_strided(mut self, dloss: impl Into<Input<'a, f32>>, stride: usize) -> Self {
            self.dloss = Some(UpstreamGradient {
                values: dloss.into(),
                stride: Some(stride),
            });
            self
        }
    };
}

/// The method that returns the workspace size of a call.
macro_rules! workspace_bytes {
    () => {
        /// Returns the bytes of workspace that the launch needs.
        ///
        /// # Errors
        /// None. It is a `Result` so that a later option can add one.
        pub fn workspace_bytes(&self) -> Result<u64> {
            Ok(raw::workspace_bytes(self.rows.count() as u64))
        }
    };
}

/// The workspace of a launch.
fn scratch<'b>(
    workspace: Option<&'b mut cudarc::driver::CudaSlice<u8>>,
    addresses: &mut Addresses<'b>,
) -> raw::Scratch {
    let (workspace, workspace_bytes) = addresses.workspace(workspace);
    raw::Scratch {
        workspace,
        workspace_bytes,
    }
}

fn logits<T: Element>(shape: Shape, matrix: LogitsMatrix) -> raw::Logits {
    raw::Logits {
        dtype: T::DTYPE,
        cols: shape.cols as u64,
        matrix,
    }
}

/// Returns a call that computes the losses of `[N, V]` logits in f32, f16 or bf16 and their summary
/// (`[1] CrossEntropySummary`). `labels` are `[N]` i32, i64 or u32: the class of each row, or
/// [`ignore_index`](CrossEntropy::ignore_index). The logits are read once.
pub fn forward<'a, T: Element, L: Label>(
    op: &'a CrossEntropy,
    logits: impl Into<Input<'a, T>>,
    labels: impl Into<Input<'a, L>>,
    summary: impl Into<Output<'a, CrossEntropySummary>>,
) -> Forward<'a, T, L> {
    Forward {
        op,
        logits: logits.into(),
        rows: Rows::new(labels),
        outputs: Outputs::new(summary),
    }
}

/// A call of [`forward`].
#[must_use = "nothing is launched until `launch`"]
pub struct Forward<'a, T, L> {
    op: &'a CrossEntropy,
    logits: Input<'a, T>,
    rows: Rows<'a, L>,
    outputs: Outputs<'a>,
}

impl<'a, T: Element, L: Label> Forward<'a, T, L> {
    row_setters!();
    output_setters!();
    workspace_bytes!();

    /// Launches the call on the stream of the queue.
    ///
    /// # Errors
    /// - [`OutOfRange`](crate::Error::OutOfRange): an option is out of range;
    /// - [`Classes`](crate::Error::Classes): there are no classes, too many, or not those of the logits;
    /// - [`Length`](crate::Error::Length), [`Shape`](crate::Error::Shape), [`Pitch`](crate::Error::Pitch),
    ///   [`GroupPitch`](crate::Error::GroupPitch), [`TooLarge`](crate::Error::TooLarge): a tensor has the wrong size;
    /// - [`Overlap`](crate::Error::Overlap), [`WrongContext`](crate::Error::WrongContext),
    ///   [`WrongThread`](crate::Error::WrongThread);
    /// - [`Workspace`](crate::Error::Workspace): the workspace of the queue is too small;
    /// - the errors of [`Device::preload`](crate::Device::preload), if a kernel is not loaded yet, and
    ///   [`Driver`](crate::Error::Driver), if the driver refuses a launch.
    ///
    /// When a check fails, nothing is written.
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let Forward {
            op,
            logits: input,
            rows,
            mut outputs,
        } = self;
        let Parts {
            device,
            stream,
            workspace,
        } = queue.parts()?;
        rows.check(device)?;
        let shape = Shape::of_logits(input.given(), input.len(), rows.count())?;
        let place = input.check("logits", device, shape)?;
        outputs.check(op, device, rows.count())?;
        let mut addresses = Addresses::on(stream);
        let (outputs, normalizer) = outputs.resolve(&mut addresses);
        let call = raw::Forward {
            logits: logits::<T>(shape, addresses.input_logits(&input, place)),
            rows: rows.resolve(&mut addresses),
            outputs,
            normalizer,
            scratch: scratch(workspace, &mut addresses),
        };
        // SAFETY: all buffers are borrowed here, the outputs mutably, have the lengths that the call says
        // (checked above), and are of the device's context, as is the stream; the workspace is the queue's, used by
        // launches on its stream alone. cudarc orders their later use and freeing after the launch.
        unsafe { raw::forward(device, stream.cu_stream(), op, &call) }
    }
}

/// Returns a call that computes what [`forward`] computes, and overwrites the `[N, V]` logits with their gradients. The
/// gradients in columns that are not classes are 0.
///
/// The logits are read once and written once if a row fits into the shared memory of a cluster of 8 blocks (compute
/// capability 9.0 and later; a cluster of 4 or 2 blocks where the device holds no larger one, as in a small MIG instance).
/// The same holds, with more than 512 rows, if a row fits into the shared memory of one block. Otherwise, and if the rows
/// are few and long, the logits are read twice.
/// [`raw::cross_entropy::forward_with_gradient`](crate::raw::cross_entropy::forward_with_gradient) has the numbers.
pub fn forward_with_gradient<'a, T: Element, L: Label>(
    op: &'a CrossEntropy,
    logits: impl Into<Output<'a, T>>,
    labels: impl Into<Input<'a, L>>,
    summary: impl Into<Output<'a, CrossEntropySummary>>,
) -> ForwardWithGradient<'a, T, L> {
    ForwardWithGradient {
        op,
        logits: logits.into(),
        rows: Rows::new(labels),
        outputs: Outputs::new(summary),
        dloss: None,
    }
}

/// A call of [`forward_with_gradient`].
#[must_use = "nothing is launched until `launch`"]
pub struct ForwardWithGradient<'a, T, L> {
    op: &'a CrossEntropy,
    logits: Output<'a, T>,
    rows: Rows<'a, L>,
    outputs: Outputs<'a>,
    dloss: Option<UpstreamGradient<'a>>,
}

impl<'a, T: Element, L: Label> ForwardWithGradient<'a, T, L> {
    row_setters!();
    output_setters!();
    dloss_setters!();
    workspace_bytes!();

    /// Launches the call on the stream of the queue.
    ///
    /// # Errors
    /// As [`Forward::launch`].
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let ForwardWithGradient {
            op,
            logits: mut output,
            rows,
            mut outputs,
            dloss,
        } = self;
        let Parts {
            device,
            stream,
            workspace,
        } = queue.parts()?;
        rows.check(device)?;
        let n = rows.count();
        let shape = Shape::of_logits(output.given(), output.len(), n)?;
        let place = output.check("logits", device, shape)?;
        outputs.check(op, device, n)?;
        let dloss = check_dloss(dloss, device, n)?;
        let mut addresses = Addresses::on(stream);
        let (outputs, normalizer) = outputs.resolve(&mut addresses);
        let forward = raw::Forward {
            logits: logits::<T>(shape, addresses.output_logits(&mut output, place)),
            rows: rows.resolve(&mut addresses),
            outputs,
            normalizer,
            scratch: scratch(workspace, &mut addresses),
        };
        let call = raw::ForwardWithGradient {
            forward,
            upstream: upstream(&dloss, &mut addresses),
            cluster: None,
        };
        // SAFETY: as in `Forward::launch`; the logits are borrowed mutably.
        unsafe { raw::forward_with_gradient(device, stream.cu_stream(), op, &call) }
    }
}

/// Returns a call that computes the gradients `dlogits`, `[N, V]` of the type of the logits, from the statistics that a
/// forward with the same options, labels, weights and Goldfish decision has saved. `saved` is `[saved_bytes] u8`, or with a
/// sharded vocabulary the gathered statistics of all ranks in their order, `[ranks, saved_bytes] u8`. The logits are read
/// once.
pub fn backward<'a, T: Element, L: Label>(
    op: &'a CrossEntropy,
    logits: impl Into<Input<'a, T>>,
    labels: impl Into<Input<'a, L>>,
    saved: impl Into<Input<'a, u8>>,
    divisor: Divisor<'a>,
    dlogits: impl Into<Output<'a, T>>,
) -> Backward<'a, T, L> {
    Backward {
        op,
        logits: Some(logits.into()),
        rows: Rows::new(labels),
        saved: saved.into(),
        divisor,
        dlogits: dlogits.into(),
        dloss: None,
    }
}

/// Like [`backward`], but overwrites the logits with the gradients.
pub fn backward_in_place<'a, T: Element, L: Label>(
    op: &'a CrossEntropy,
    logits: impl Into<Output<'a, T>>,
    labels: impl Into<Input<'a, L>>,
    saved: impl Into<Input<'a, u8>>,
    divisor: Divisor<'a>,
) -> Backward<'a, T, L> {
    Backward {
        op,
        logits: None,
        rows: Rows::new(labels),
        saved: saved.into(),
        divisor,
        dlogits: logits.into(),
        dloss: None,
    }
}

/// A call of [`backward`].
#[must_use = "nothing is launched until `launch`"]
pub struct Backward<'a, T, L> {
    op: &'a CrossEntropy,
    /// `None` if the logits are in `dlogits`.
    logits: Option<Input<'a, T>>,
    rows: Rows<'a, L>,
    saved: Input<'a, u8>,
    divisor: Divisor<'a>,
    dlogits: Output<'a, T>,
    dloss: Option<UpstreamGradient<'a>>,
}

impl<'a, T: Element, L: Label> Backward<'a, T, L> {
    row_setters!();
    dloss_setters!();

    /// Sets which classes the columns are, for a vocabulary that is sharded over ranks. [`vocab`](CrossEntropy::vocab) is
    /// then the number of classes of this rank.
    pub fn shard(mut self, shard: Shard) -> Self {
        self.rows.shard = Some(shard);
        self
    }

    /// Returns the bytes of workspace that the launch needs: 0.
    ///
    /// # Errors
    /// None. It is a `Result` so that a later option can add one.
    pub fn workspace_bytes(&self) -> Result<u64> {
        Ok(0)
    }

    /// Launches the call on the stream of the queue.
    ///
    /// # Errors
    /// As [`Forward::launch`].
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let Backward {
            op,
            logits: input,
            rows,
            saved,
            divisor,
            mut dlogits,
            dloss,
        } = self;
        let Parts { device, stream, .. } = queue.parts()?;
        rows.check(device)?;
        let n = rows.count();
        let shape = match &input {
            Some(input) => Shape::of_logits(input.given().or(dlogits.given()), input.len(), n)?,
            None => Shape::of_logits(dlogits.given(), dlogits.len(), n)?,
        };
        let check = |input: &Input<'_, T>| input.check("logits", device, shape);
        let input_place: Option<Place> = input.as_ref().map(check).transpose()?;
        let what = if input.is_some() { "dlogits" } else { "logits" };
        let place = dlogits.check(what, device, shape)?;
        let ranks = check_saved(op, &saved, device, n)?;
        divisor.check(device)?;
        let dloss = check_dloss(dloss, device, n)?;
        let mut addresses = Addresses::on(stream);
        let dlogits = addresses.output_logits(&mut dlogits, place);
        let call = raw::Backward {
            logits: logits::<T>(
                shape,
                (input.as_ref().zip(input_place)).map_or(dlogits, |(input, place)| {
                    addresses.input_logits(input, place)
                }),
            ),
            rows: rows.resolve(&mut addresses),
            saved: addresses.input(&saved),
            ranks,
            dlogits,
            normalizer: divisor.resolve(&mut addresses),
            upstream: upstream(&dloss, &mut addresses),
        };
        // SAFETY: as in `Forward::launch`.
        unsafe { raw::backward(device, stream.cu_stream(), op, &call) }
    }
}

/// Returns a call that saves the statistics of one rank's columns of a sharded vocabulary, `[saved_bytes] u8`. Gather those
/// of all ranks and give them to [`finish`] and [`backward`].
pub fn partial<'a, T: Element, L: Label>(
    op: &'a CrossEntropy,
    logits: impl Into<Input<'a, T>>,
    labels: impl Into<Input<'a, L>>,
    shard: Shard,
    saved: impl Into<Output<'a, u8>>,
) -> Partial<'a, T, L> {
    Partial {
        op,
        logits: logits.into(),
        rows: Rows {
            shard: Some(shard),
            ..Rows::new(labels)
        },
        with_argmax: false,
        saved: saved.into(),
    }
}

/// A call of [`partial`].
#[must_use = "nothing is launched until `launch`"]
pub struct Partial<'a, T, L> {
    op: &'a CrossEntropy,
    logits: Input<'a, T>,
    rows: Rows<'a, L>,
    with_argmax: bool,
    saved: Output<'a, u8>,
}

impl<'a, T: Element, L: Label> Partial<'a, T, L> {
    row_setters!();
    workspace_bytes!();

    /// Computes the argmax too. Needed if [`finish`] has an output for the argmax.
    pub fn with_argmax(mut self) -> Self {
        self.with_argmax = true;
        self
    }

    /// Launches the call on the stream of the queue.
    ///
    /// # Errors
    /// As [`Forward::launch`].
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let Partial {
            op,
            logits: input,
            rows,
            with_argmax,
            mut saved,
        } = self;
        let Parts {
            device,
            stream,
            workspace,
        } = queue.parts()?;
        rows.check(device)?;
        let n = rows.count();
        let shape = Shape::of_logits(input.given(), input.len(), n)?;
        let place = input.check("logits", device, shape)?;
        saved.check_line("saved", device, op.saved_bytes(n as u64) as usize)?;
        let mut addresses = Addresses::on(stream);
        let call = raw::PartialStats {
            logits: logits::<T>(shape, addresses.input_logits(&input, place)),
            rows: rows.resolve(&mut addresses),
            with_argmax,
            saved: addresses.output(&mut saved),
            scratch: scratch(workspace, &mut addresses),
        };
        // SAFETY: as in `Forward::launch`.
        unsafe { raw::partial_stats(device, stream.cu_stream(), op, &call) }
    }
}

/// Returns a call that computes the losses and the summary from the gathered statistics of all ranks in their order,
/// `[ranks, saved_bytes] u8`. The results have the same bits on every rank. The output `saved` of this call has the
/// statistics of whole rows.
pub fn finish<'a, L: Label>(
    op: &'a CrossEntropy,
    labels: impl Into<Input<'a, L>>,
    shard: Shard,
    gathered: impl Into<Input<'a, u8>>,
    summary: impl Into<Output<'a, CrossEntropySummary>>,
) -> Finish<'a, L> {
    Finish {
        op,
        rows: Rows {
            shard: Some(shard),
            ..Rows::new(labels)
        },
        gathered: gathered.into(),
        outputs: Outputs::new(summary),
    }
}

/// A call of [`finish`].
#[must_use = "nothing is launched until `launch`"]
pub struct Finish<'a, L> {
    op: &'a CrossEntropy,
    rows: Rows<'a, L>,
    gathered: Input<'a, u8>,
    outputs: Outputs<'a>,
}

impl<'a, L: Label> Finish<'a, L> {
    row_setters!();
    output_setters!();
    workspace_bytes!();

    /// Launches the call on the stream of the queue.
    ///
    /// # Errors
    /// As [`Forward::launch`].
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let Finish {
            op,
            rows,
            gathered,
            mut outputs,
        } = self;
        let Parts {
            device,
            stream,
            workspace,
        } = queue.parts()?;
        rows.check(device)?;
        let ranks = check_saved(op, &gathered, device, rows.count())?;
        outputs.check(op, device, rows.count())?;
        let mut addresses = Addresses::on(stream);
        let (outputs, normalizer) = outputs.resolve(&mut addresses);
        let call = raw::Finish {
            rows: rows.resolve(&mut addresses),
            gathered: addresses.input(&gathered),
            ranks,
            outputs,
            normalizer,
            scratch: scratch(workspace, &mut addresses),
        };
        // SAFETY: as in `Forward::launch`.
        unsafe { raw::finish(device, stream.cu_stream(), op, &call) }
    }
}

/// Checks the gathered statistics, and returns the number of ranks.
fn check_saved(
    op: &CrossEntropy,
    saved: &Input<'_, u8>,
    device: &Device,
    rows: usize,
) -> Result<u64> {
    let bytes = op.saved_bytes(rows as u64) as usize;
    let ranks = op.ranks(rows, saved.len());
    saved.check_line("saved", device, ranks * bytes)?;
    Ok(ranks as u64)
}
