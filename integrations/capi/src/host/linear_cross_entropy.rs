//! The host functions of the head.

use xact::cpu::linear_cross_entropy as head;
use xact::cpu::{Input, kept_rows as list};
use xact::{LinearCrossEntropy, Logits, ParamOf};

use super::*;

/// The tensors of a call, and the options of the head.
struct Head<'a, T, D> {
    op: LinearCrossEntropy,
    hidden: Input<'a, T>,
    weight: Input<'a, T>,
    d_hidden: Option<Output<'a, T>>,
    d_weight: Option<Output<'a, D>>,
    accumulate: bool,
    kept_rows: Option<&'a [i32]>,
}

impl<'a, T: Element, D: Element> Head<'a, T, D> {
    /// Reads the arguments. The gradients are only used with `gradients`.
    unsafe fn new<L: Label>(
        args: &xact_linear_cross_entropy_args,
        call: &mut Call<'a, L>,
        gradients: bool,
    ) -> Result<Self> {
        let (rows, classes, cols) = (call.args.rows, call.args.cols, args.hidden_cols);
        let hidden = Tensor::<T>::new("hidden", args.hidden, rows, cols)?;
        let weight = Tensor::<T>::new("weight", args.weight, classes, cols)?;
        let (d_hidden, d_weight) = match gradients {
            true => (args.d_hidden, args.d_weight),
            false => (xact_matrix::NONE.into(), xact_matrix::NONE),
        };
        let d_hidden = match d_hidden.ptr.is_null() {
            true => None,
            false => Some(Tensor::<T>::new("d_hidden", d_hidden, rows, cols)?),
        };
        let d_weight = match d_weight.ptr.is_null() {
            true => None,
            false => Some(Tensor::<D>::new("d_weight", d_weight, classes, cols)?),
        };
        let mut op = LinearCrossEntropy::new(*call.op).logits(match args.logits {
            XACT_LOGITS_F32 => Logits::F32,
            XACT_LOGITS_NARROW => Logits::Narrow,
            other => return Err(unknown("logits", other.into(), "XACT_LOGITS")),
        });
        if args.max_bytes != 0 {
            op = op.max_bytes(args.max_bytes);
        }
        if args.chunk_rows != 0 {
            op = op.chunk_rows(args.chunk_rows);
        }
        let inputs = [hidden.span(), weight.span()];
        let d_hidden_span = d_hidden.as_ref().map(Tensor::span);
        let d_weight_span = d_weight.as_ref().map(Tensor::span);
        let outputs = [d_hidden_span, d_weight_span];
        // A slice has the gaps between its rows too.
        for output in outputs.into_iter().flatten() {
            let others = inputs.into_iter().chain(d_weight_span);
            for other in others.filter(|&other| !std::ptr::eq(other, output)) {
                let [a, b] = [output.range(), other.range()];
                if a.start.max(b.start) < a.end.min(b.end) {
                    let (output, other) = (output.what(), other.what());
                    return Err(Error::Overlap { output, other }.into());
                }
            }
        }
        for input in inputs {
            call.buffers.read(input.clone());
        }
        let (ptr, count) = (args.kept_rows, args.kept_count);
        let kept_rows = match ptr.is_null() && count == 0 {
            true => None,
            // SAFETY: the caller vouches for the list.
            false => Some(unsafe { read_array(&mut call.buffers, "kept_rows", ptr, count) }?),
        };
        for output in outputs.into_iter().flatten() {
            call.buffers.write(output.clone())?;
        }
        // SAFETY: the caller vouches for the elements, and the outputs overlap no other slice.
        unsafe {
            Ok(Head {
                op,
                hidden: hidden.input(),
                weight: weight.input(),
                d_hidden: d_hidden.map(|d_hidden| d_hidden.output()),
                d_weight: d_weight.map(|d_weight| d_weight.output()),
                accumulate: options::wide_flag("accumulate", args.accumulate)?,
                kept_rows,
            })
        }
    }
}

/// Sets the weights, the Goldfish decision and the list of a call.
macro_rules! set_kept_rows {
    ($call:expr, $from:expr, $list:expr) => {{
        let call = $call;
        let call = set_rows!(call, $from);
        match $list {
            Some(list) => call.kept_rows(list),
            None => call,
        }
    }};
}

/// Sets the gradients of a call.
macro_rules! set_gradients {
    ($call:expr, $head:ident, $dloss:expr) => {{
        let mut call = $call;
        if let Some(d_hidden) = $head.d_hidden {
            call = call.d_hidden(d_hidden);
        }
        if let Some(d_weight) = $head.d_weight {
            call = match $head.accumulate {
                true => call.accumulate_d_weight(d_weight),
                false => call.d_weight(d_weight),
            };
        }
        match $dloss {
            Some(dloss) => call.dloss(dloss),
            None => call,
        }
    }};
}

/// Reads the options and arguments of a head, and evaluates `$body` in the pool, with the types of the tensors, of the gradient
/// of the weights and of the labels.
macro_rules! head_in_pool {
    ($op:ident, $args:ident, $body:ident) => {{
        // SAFETY: the caller vouches for all of it.
        let ($op, $args, loss) = unsafe {
            let args = memory::read($args)?;
            (options::cross_entropy($op)?, args, memory::read(args.loss)?)
        };
        let narrow = match options::param_dtype($args.d_weight_dtype)? {
            Dtype::F32 => false,
            dtype if dtype == options::dtype("dtype", loss.dtype)? => true,
            dtype => {
                let text = format!("d_weight_dtype is {dtype}; it must be f32 or the type of the weights");
                return Err(Failure::new(XACT_ERROR_PARAM_DTYPE, text));
            }
        };
        // SAFETY: as above.
        pool::run(|| unsafe {
            with_dtype!(loss.dtype, T => with_labels!(loss.label_type, L => match narrow {
                true => $body::<T, T, L>(&$op, &$args, &loss),
                false => $body::<T, f32, L>(&$op, &$args, &loss),
            }))
        })?
    }};
}

pub unsafe fn linear_cross_entropy_forward(
    op: *const xact_cross_entropy,
    args: *const xact_linear_cross_entropy_args,
) -> Result<()> {
    head_in_pool!(op, args, forward)
}

unsafe fn forward<T: Element, D: ParamOf<T>, L: Label>(
    op: &CrossEntropy,
    args: &xact_linear_cross_entropy_args,
    loss: &xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut call = Call::<L>::new(op, loss)?;
        let head = Head::<T, D>::new(args, &mut call, false)?;
        let normalizer = call.normalizer()?;
        let outputs = call.outputs()?;
        let forward = head::forward(&head.op, head.hidden, head.weight, call.labels);
        let forward = set_kept_rows!(forward, call, head.kept_rows);
        let summary = set_outputs!(forward, outputs, normalizer).run()?;
        call.store(summary);
    }
    Ok(())
}

pub unsafe fn linear_cross_entropy_forward_with_gradient(
    op: *const xact_cross_entropy,
    args: *const xact_linear_cross_entropy_args,
) -> Result<()> {
    head_in_pool!(op, args, forward_with_gradient)
}

unsafe fn forward_with_gradient<T: Element, D: ParamOf<T>, L: Label>(
    op: &CrossEntropy,
    args: &xact_linear_cross_entropy_args,
    loss: &xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut call = Call::<L>::new(op, loss)?;
        let head = Head::<T, D>::new(args, &mut call, true)?;
        let normalizer = call.normalizer()?;
        let dloss = call.upstream()?;
        let outputs = call.outputs()?;
        let both = head::forward_with_gradient(&head.op, head.hidden, head.weight, call.labels);
        let both = set_kept_rows!(both, call, head.kept_rows);
        let both = set_gradients!(both, head, &dloss);
        let summary = set_outputs!(both, outputs, normalizer).run()?;
        call.store(summary);
    }
    Ok(())
}

pub unsafe fn linear_cross_entropy_backward(
    op: *const xact_cross_entropy,
    args: *const xact_linear_cross_entropy_args,
) -> Result<()> {
    head_in_pool!(op, args, backward)
}

unsafe fn backward<T: Element, D: ParamOf<T>, L: Label>(
    op: &CrossEntropy,
    args: &xact_linear_cross_entropy_args,
    loss: &xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut call = Call::<L>::new(op, loss)?;
        let saved = call.gathered()?;
        let normalizer = call.normalizer()?.unwrap_or(1.0);
        let dloss = call.upstream()?;
        let head = Head::<T, D>::new(args, &mut call, true)?;
        let labels = call.labels;
        let backward = head::backward(
            &head.op,
            head.hidden,
            head.weight,
            labels,
            saved,
            normalizer,
        );
        let backward = match (loss.first_class, loss.classes) {
            (0, 0) => backward,
            _ => backward.shard(call.shard(0)),
        };
        let backward = set_kept_rows!(backward, call, head.kept_rows);
        set_gradients!(backward, head, &dloss).run()?;
    }
    Ok(())
}

pub unsafe fn linear_cross_entropy_partial_stats(
    op: *const xact_cross_entropy,
    args: *const xact_linear_cross_entropy_args,
) -> Result<()> {
    head_in_pool!(op, args, partial_stats)
}

unsafe fn partial_stats<T: Element, D: ParamOf<T>, L: Label>(
    op: &CrossEntropy,
    args: &xact_linear_cross_entropy_args,
    loss: &xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut call = Call::<L>::new(op, loss)?;
        let head = Head::<T, D>::new(args, &mut call, false)?;
        let with_argmax = options::wide_flag("with_argmax", loss.with_argmax)?;
        let saved = call.saved()?;
        let shard = call.shard(op.vocab.unwrap_or(loss.cols));
        let partial = head::partial(
            &head.op,
            head.hidden,
            head.weight,
            call.labels,
            shard,
            saved,
        );
        let partial = set_kept_rows!(partial, call, head.kept_rows);
        match with_argmax {
            true => partial.with_argmax().run()?,
            false => partial.run()?,
        }
    }
    Ok(())
}

pub unsafe fn kept_rows(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
    kept_rows: *mut i32,
    count: *mut u64,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let (op, args) = (options::cross_entropy(op)?, memory::read(args)?);
        pool::run(|| {
            with_labels!(args.label_type, L => {
                let mut call = Call::<L>::new(&op, &args)?;
                let to = write_array(&mut call.buffers, "kept_rows", kept_rows, args.rows)?;
                memory::check_place("count", count)?;
                call.buffers.write(memory::span("count", count, 1)?)?;
                let rows = list(&op, call.labels);
                let rows = set_rows!(rows, call).run()?;
                if let Some(to) = to {
                    to[..rows.len()].copy_from_slice(&rows);
                }
                memory::put("count", count, rows.len() as u64)
            })
        })?
    }
}
