//! The safe API's way in: the calls hold the borrows of all buffers over the launch, check what the types
//! do not say, and resolve the buffers only when all is well.

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};

use super::super::CUdeviceptr;
use super::super::goldfish::{IdType, safe as goldfish};
use super::{
    Backward, Finish, Forward, ForwardWithGradient, Logits, Outputs, PartialStats, Rows, Scratch,
    Upstream,
};
use crate::device::{Device, Workspace};
use crate::dtype::Element;
use crate::error::{Error, Result, check_length};
use crate::launch::{CrossEntropySummary, Matrix};
use crate::loss::cross_entropy::{CrossEntropy, device as call};
use crate::loss::goldfish::TokenId;
use crate::tensor;

/// Checks that `buffer` is of the device's context and as long as it must be.
fn check<T>(
    what: &'static str,
    device: &Device,
    buffer: &(impl DeviceSlice<T> + ?Sized),
    len: usize,
) -> Result<()> {
    device.check_buffer(what, buffer.stream())?;
    check_length(what, len, buffer.len())
}

fn check_rows<L: TokenId>(device: &Device, rows: &call::Rows<'_, L>) -> Result<()> {
    let n = rows.labels.len();
    check("labels", device, rows.labels, n)?;
    if let Some(weights) = rows.weights {
        check("weights", device, weights, n)?;
    }
    if let Some(decision) = &rows.goldfish {
        goldfish::check(decision.strategy, &decision.tokens, device)?;
        check("hash_ids", device, decision.tokens.hash_ids, n)?;
    }
    Ok(())
}

/// Calls `f` with the addresses of what decides about rows.
fn with_rows<L: TokenId, R>(
    stream: &CudaStream,
    rows: &call::Rows<'_, L>,
    f: impl FnOnce(Rows<'_>) -> R,
) -> R {
    let (labels, _labels) = rows.labels.device_ptr(stream);
    let (weights, _weights) = rows.weights.map(|w| w.device_ptr(stream)).unzip();
    let decision = rows.goldfish.as_ref();
    let decision = decision.map(|d| goldfish::resolve(d.strategy, &d.tokens, stream));
    f(Rows {
        rows: rows.labels.len() as u64,
        labels,
        label_type: IdType::of::<L>(),
        weights,
        goldfish: decision.as_ref().map(|d| d.decision),
        shard: rows.shard,
        max_blocks: None,
    })
}

/// The shape of logits: as given, or as many rows as labels.
fn shape(explicit: Option<tensor::Rows>, len: usize, rows: usize) -> Result<tensor::Shape> {
    let cols = match explicit {
        Some(explicit) => {
            check_length("labels", explicit.rows, rows)?;
            explicit.cols
        }
        None => match len.checked_div(rows) {
            Some(cols) if cols * rows == len => cols,
            None if len == 0 => 0,
            cols => {
                return Err(Error::Length {
                    what: "logits",
                    expected: (cols.unwrap_or(0) * rows) as u64,
                    got: len as u64,
                });
            }
        },
    };
    Ok(tensor::Shape { rows, cols })
}

fn logits<T: Element>(shape: tensor::Shape, matrix: Matrix) -> Logits {
    Logits {
        dtype: T::DTYPE,
        cols: shape.cols as u64,
        matrix: matrix.into(),
    }
}

fn check_outputs(device: &Device, outputs: &call::Outputs<'_>, n: usize) -> Result<()> {
    let f32s = [
        ("loss", &outputs.loss),
        ("z_loss", &outputs.z_loss),
        ("lse", &outputs.lse),
    ];
    for (what, buffer) in f32s {
        if let Some(buffer) = buffer {
            check(what, device, &**buffer, n)?;
        }
    }
    if let Some(argmax) = &outputs.argmax {
        check("argmax", device, &**argmax, n)?;
    }
    check("stats", device, &*outputs.stats, n)?;
    check("summary", device, &*outputs.summary, 1)
}

/// Calls `f` with the addresses of the outputs.
fn with_outputs<R>(
    stream: &CudaStream,
    outputs: call::Outputs<'_>,
    f: impl FnOnce(Outputs) -> R,
) -> R {
    let call::Outputs {
        loss,
        z_loss,
        lse,
        argmax,
        stats,
        summary,
    } = outputs;
    let (loss, _loss) = loss.map(|b| b.device_ptr_mut(stream)).unzip();
    let (z_loss, _z_loss) = z_loss.map(|b| b.device_ptr_mut(stream)).unzip();
    let (lse, _lse) = lse.map(|b| b.device_ptr_mut(stream)).unzip();
    let (argmax, _argmax) = argmax.map(|b| b.device_ptr_mut(stream)).unzip();
    let (stats, _stats) = stats.device_ptr_mut(stream);
    let (summary, _summary) = summary.device_ptr_mut(stream);
    f(Outputs {
        loss,
        z_loss,
        lse,
        argmax,
        stats,
        summary,
    })
}

/// Calls `f` with the address of the workspace.
fn with_scratch(
    stream: &CudaStream,
    workspace: &mut Workspace,
    f: impl FnOnce(Scratch) -> Result<()>,
) -> Result<()> {
    let workspace_bytes = workspace.bytes();
    let (workspace, _guard) = workspace.buffer_for(stream)?.device_ptr_mut(stream);
    f(Scratch {
        workspace,
        workspace_bytes,
    })
}

fn check_normalizer(device: &Device, normalizer: Option<&dyn DevicePtr<f32>>) -> Result<()> {
    normalizer.map_or(Ok(()), |n| check("the normalizer", device, n, 1))
}

fn check_divisor(device: &Device, divisor: &call::Divisor<'_>) -> Result<()> {
    match divisor {
        call::Divisor::One => Ok(()),
        call::Divisor::Summary(summary) => check("summary", device, *summary, 1),
        call::Divisor::Scalar(scalar) => check("the normalizer", device, *scalar, 1),
    }
}

fn divisor<'a>(
    stream: &'a CudaStream,
    divisor: call::Divisor<'a>,
) -> (Option<CUdeviceptr>, Option<SyncOnDrop<'a>>) {
    match divisor {
        call::Divisor::One => None,
        call::Divisor::Summary(summary) => {
            let (ptr, guard) = summary.device_ptr(stream);
            let offset = std::mem::offset_of!(CrossEntropySummary, normalizer) as u64;
            Some((ptr + offset, guard))
        }
        call::Divisor::Scalar(scalar) => Some(scalar.device_ptr(stream)),
    }
    .unzip()
}

fn check_dloss(device: &Device, dloss: Option<call::Dloss<'_>>, rows: usize) -> Result<()> {
    let Some(call::Dloss { buffer, stride }) = dloss else {
        return Ok(());
    };
    device.check_buffer("dloss", buffer.stream())?;
    let needed = match rows {
        0 => Some(0),
        rows => stride.checked_mul(rows - 1).and_then(|n| n.checked_add(1)),
    };
    match needed {
        Some(needed) if needed <= buffer.len() && i64::try_from(stride).is_ok() => Ok(()),
        needed => Err(Error::Length {
            what: "dloss",
            expected: needed.map_or(u64::MAX, |n| n as u64),
            got: buffer.len() as u64,
        }),
    }
}

fn upstream<'a>(
    stream: &'a CudaStream,
    dloss: Option<call::Dloss<'a>>,
) -> (Upstream, Option<SyncOnDrop<'a>>) {
    let stride = dloss.map_or(0, |d| d.stride as i64);
    let (dloss, guard) = dloss.map(|d| d.buffer.device_ptr(stream)).unzip();
    (Upstream { dloss, stride }, guard)
}

pub(crate) fn forward<T: Element, L: TokenId>(
    op: &CrossEntropy,
    device: &Device,
    stream: &CudaStream,
    call: call::Forward<'_, T, L>,
) -> Result<()> {
    let call::Forward {
        logits: input,
        rows,
        outputs,
        normalizer,
        workspace,
    } = call;
    device.check_stream(stream)?;
    check_rows(device, &rows)?;
    let n = rows.labels.len();
    let shape = shape(input.explicit(), input.len(), n)?;
    let input_rows = input.check("logits", device, shape)?;
    check_outputs(device, &outputs, n)?;
    check_normalizer(device, normalizer)?;
    with_scratch(stream, workspace, |scratch| {
        let input = input.resolve(stream, input_rows);
        let (normalizer, _normalizer) = normalizer.map(|n| n.device_ptr(stream)).unzip();
        with_rows(stream, &rows, |rows| {
            with_outputs(stream, outputs, |outputs| {
                let call = Forward {
                    rows,
                    logits: logits::<T>(shape, input.matrix),
                    outputs,
                    normalizer,
                    scratch,
                };
                // SAFETY: all buffers are borrowed here, the outputs mutably, have the lengths that the call says
                // (checked above), and are of the device's context, as is the stream; the workspace is of the
                // stream. cudarc orders their later use and freeing after the launch.
                unsafe { super::forward(device, stream.cu_stream(), op, &call) }
            })
        })
    })
}

pub(crate) fn forward_with_gradient<T: Element, L: TokenId>(
    op: &CrossEntropy,
    device: &Device,
    stream: &CudaStream,
    call: call::ForwardWithGradient<'_, T, L>,
) -> Result<()> {
    let call::ForwardWithGradient {
        logits: mut output,
        rows,
        outputs,
        normalizer,
        dloss,
        workspace,
    } = call;
    device.check_stream(stream)?;
    check_rows(device, &rows)?;
    let n = rows.labels.len();
    let shape = shape(output.explicit(), output.len(), n)?;
    let output_rows = output.check("logits", device, shape)?;
    check_outputs(device, &outputs, n)?;
    check_normalizer(device, normalizer)?;
    check_dloss(device, dloss, n)?;
    with_scratch(stream, workspace, |scratch| {
        let output = output.resolve(stream, output_rows);
        let (normalizer, _normalizer) = normalizer.map(|n| n.device_ptr(stream)).unzip();
        let (upstream, _dloss) = upstream(stream, dloss);
        with_rows(stream, &rows, |rows| {
            with_outputs(stream, outputs, |outputs| {
                let forward = Forward {
                    rows,
                    logits: logits::<T>(shape, output.matrix),
                    outputs,
                    normalizer,
                    scratch,
                };
                let call = ForwardWithGradient { forward, upstream };
                // SAFETY: as in `forward`.
                unsafe { super::forward_with_gradient(device, stream.cu_stream(), op, &call) }
            })
        })
    })
}

/// The number of ranks whose stats these are.
fn ranks(stats: usize, rows: usize) -> Result<u64> {
    // Without rows there is nothing to be merged.
    let ranks = stats.checked_div(rows).unwrap_or(1);
    if ranks == 0 || ranks * rows != stats {
        return Err(Error::Length {
            what: "stats",
            expected: (ranks.max(1) * rows) as u64,
            got: stats as u64,
        });
    }
    Ok(ranks as u64)
}

pub(crate) fn backward<T: Element, L: TokenId>(
    op: &CrossEntropy,
    device: &Device,
    stream: &CudaStream,
    call: call::Backward<'_, T, L>,
) -> Result<()> {
    let call::Backward {
        logits: input,
        rows,
        stats,
        mut dlogits,
        divisor: by,
        dloss,
    } = call;
    device.check_stream(stream)?;
    check_rows(device, &rows)?;
    let n = rows.labels.len();
    let shape = shape(input.explicit().or(dlogits.explicit()), input.len(), n)?;
    let input_rows = input.check("logits", device, shape)?;
    let output_rows = dlogits.check("dlogits", device, shape)?;
    device.check_buffer("stats", stats.stream())?;
    let ranks = ranks(stats.len(), n)?;
    check_divisor(device, &by)?;
    check_dloss(device, dloss, n)?;
    let (input, output) = (
        input.resolve(stream, input_rows),
        dlogits.resolve(stream, output_rows),
    );
    let (stats, _stats) = stats.device_ptr(stream);
    let (normalizer, _normalizer) = divisor(stream, by);
    let (upstream, _dloss) = upstream(stream, dloss);
    with_rows(stream, &rows, |rows| {
        let call = Backward {
            rows,
            logits: logits::<T>(shape, input.matrix),
            stats,
            ranks,
            dlogits: output.matrix.into(),
            normalizer,
            upstream,
        };
        // SAFETY: as in `forward`.
        unsafe { super::backward(device, stream.cu_stream(), op, &call) }
    })
}

pub(crate) fn backward_in_place<T: Element, L: TokenId>(
    op: &CrossEntropy,
    device: &Device,
    stream: &CudaStream,
    call: call::BackwardInPlace<'_, T, L>,
) -> Result<()> {
    let call::BackwardInPlace {
        logits: mut output,
        rows,
        stats,
        divisor: by,
        dloss,
    } = call;
    device.check_stream(stream)?;
    check_rows(device, &rows)?;
    let n = rows.labels.len();
    let shape = shape(output.explicit(), output.len(), n)?;
    let output_rows = output.check("logits", device, shape)?;
    device.check_buffer("stats", stats.stream())?;
    let ranks = ranks(stats.len(), n)?;
    check_divisor(device, &by)?;
    check_dloss(device, dloss, n)?;
    let output = output.resolve(stream, output_rows);
    let (stats, _stats) = stats.device_ptr(stream);
    let (normalizer, _normalizer) = divisor(stream, by);
    let (upstream, _dloss) = upstream(stream, dloss);
    with_rows(stream, &rows, |rows| {
        let call = Backward {
            rows,
            logits: logits::<T>(shape, output.matrix),
            stats,
            ranks,
            dlogits: output.matrix.into(),
            normalizer,
            upstream,
        };
        // SAFETY: as in `forward`; the logits are borrowed mutably.
        unsafe { super::backward(device, stream.cu_stream(), op, &call) }
    })
}

pub(crate) fn partial_stats<T: Element, L: TokenId>(
    op: &CrossEntropy,
    device: &Device,
    stream: &CudaStream,
    call: call::PartialStats<'_, T, L>,
) -> Result<()> {
    let call::PartialStats {
        logits: input,
        rows,
        with_argmax,
        stats,
        workspace,
    } = call;
    device.check_stream(stream)?;
    check_rows(device, &rows)?;
    let n = rows.labels.len();
    let shape = shape(input.explicit(), input.len(), n)?;
    let input_rows = input.check("logits", device, shape)?;
    check("stats", device, &*stats, n)?;
    with_scratch(stream, workspace, |scratch| {
        let input = input.resolve(stream, input_rows);
        let (stats, _stats) = stats.device_ptr_mut(stream);
        with_rows(stream, &rows, |rows| {
            let call = PartialStats {
                rows,
                logits: logits::<T>(shape, input.matrix),
                with_argmax,
                stats,
                scratch,
            };
            // SAFETY: as in `forward`.
            unsafe { super::partial_stats(device, stream.cu_stream(), op, &call) }
        })
    })
}

pub(crate) fn finish<L: TokenId>(
    op: &CrossEntropy,
    device: &Device,
    stream: &CudaStream,
    call: call::Finish<'_, L>,
) -> Result<()> {
    let call::Finish {
        rows,
        gathered,
        outputs,
        normalizer,
        workspace,
    } = call;
    device.check_stream(stream)?;
    check_rows(device, &rows)?;
    let n = rows.labels.len();
    device.check_buffer("stats", gathered.stream())?;
    let ranks = ranks(gathered.len(), n)?;
    check_outputs(device, &outputs, n)?;
    check_normalizer(device, normalizer)?;
    with_scratch(stream, workspace, |scratch| {
        let (gathered, _gathered) = gathered.device_ptr(stream);
        let (normalizer, _normalizer) = normalizer.map(|n| n.device_ptr(stream)).unzip();
        with_rows(stream, &rows, |rows| {
            with_outputs(stream, outputs, |outputs| {
                let call = Finish {
                    rows,
                    gathered,
                    ranks,
                    outputs,
                    normalizer,
                    scratch,
                };
                // SAFETY: as in `forward`.
                unsafe { super::finish(device, stream.cu_stream(), op, &call) }
            })
        })
    })
}
