//! The host functions: they convert the header's types to those of `xact::cpu`, and call that.
//!
//! In Rust, a mutable slice must not overlap another slice, and slices include the gaps between rows. If `xact::cpu` cannot
//! compute an output in place, or if the rows of an output lie in the gaps of another tensor, the output is therefore
//! computed in a temporary buffer and copied.

#![allow(unsafe_code)]

use std::ffi::c_void;

use xact::cpu::{self, Output, Pair, PairMut, cross_entropy as loss, goldfish};
use xact::half::{bf16, f16};
use xact::loss::{Label, TokenId};
use xact::span::Span;
use xact::{
    Activation, AnyActivation, CrossEntropy, CrossEntropySummary, Dtype, Element, Error, Gated,
    Goldfish, Halves, Order, Shard, Tokens,
};

use crate::goldfish::xact_goldfish;
use crate::matrix::{Buffers, Tensor};
use crate::memory;
use crate::options::{self, unknown};
use crate::pool;
use crate::status::{Failure, Result};
use crate::types::*;

/// Evaluates `$body` with `$T` as the element type of an XACT_DTYPE number.
macro_rules! with_dtype {
    ($number:expr, $T:ident => $body:expr) => {
        match options::dtype("dtype", $number)? {
            Dtype::F32 => {
                type $T = f32;
                $body
            }
            Dtype::F16 => {
                type $T = f16;
                $body
            }
            Dtype::Bf16 => {
                type $T = bf16;
                $body
            }
            other => {
                let text = format!("{other} has no host functions");
                Err(Failure::new(XACT_ERROR_OTHER, text))
            }
        }
    };
}

/// Evaluates `$body` with `$L` as the label type of an XACT_ID number.
macro_rules! with_labels {
    ($number:expr, $L:ident => $body:expr) => {
        match $number {
            XACT_ID_I32 => {
                type $L = i32;
                $body
            }
            XACT_ID_I64 => {
                type $L = i64;
                $body
            }
            XACT_ID_U32 => {
                type $L = u32;
                $body
            }
            XACT_ID_U8 => Err(Error::LabelType { labels: "u8" }.into()),
            XACT_ID_U16 => Err(Error::LabelType { labels: "u16" }.into()),
            other => Err(unknown("label_type", other.into(), "XACT_ID")),
        }
    };
}

/// The spans of the scalars in an array of pointers.
fn scalar_spans<T>(names: &[&'static str], pointers: &[*const T], size: u64) -> Result<Vec<Span>> {
    let scalar = |(name, pointer): (&&'static str, &*const T)| {
        Ok(Span::new(name, pointer.addr() as u64, 1, 1, 1, size)?)
    };
    names.iter().zip(pointers).map(scalar).collect()
}

/// The parameters of an activation as f32. Adds their spans to `buffers`.
unsafe fn params<T: Element>(
    op: &AnyActivation,
    args: &xact_activation_args,
    buffers: &mut Buffers,
) -> Result<Vec<f32>> {
    let signature = op.signature();
    let dtype = options::param_dtype(args.param_dtype)?;
    if dtype != Dtype::F32 && dtype != T::DTYPE {
        return Err(Error::ParamDtype {
            params: dtype.name(),
            x: T::DTYPE.name(),
        }
        .into());
    }
    let names = options::scalar_names("params", signature.params, args.param_count)?;
    // SAFETY: the caller vouches for the array.
    let pointers = unsafe { memory::array("params", args.params, args.param_count) }?;
    for span in scalar_spans(names, pointers, dtype.size())? {
        buffers.read(span);
    }
    // SAFETY: they are aligned and not null, and the caller vouches for them.
    let value = |ptr: &*const c_void| unsafe {
        match dtype {
            Dtype::F16 => ptr.cast::<f16>().read().to_f32(),
            Dtype::Bf16 => ptr.cast::<bf16>().read().to_f32(),
            _ => ptr.cast::<f32>().read(),
        }
    };
    Ok(pointers.iter().map(value).collect())
}

/// The gradients of parameters, and the caller's pointers to them.
struct Gradients {
    places: Vec<*mut f32>,
    values: Vec<f32>,
    accumulate: bool,
}

impl Gradients {
    /// The gradients that a call asks for; `None` if none. With `accumulate`, they start from the caller's values.
    unsafe fn new(
        op: &AnyActivation,
        args: &xact_activation_args,
        buffers: &mut Buffers,
    ) -> Result<Option<Gradients>> {
        if args.dparams.is_null() && args.dparam_count == 0 {
            return Ok(None);
        }
        let accumulate = options::wide_flag("accumulate", args.accumulate)?;
        let names = options::scalar_names("dparams", op.signature().gradients, args.dparam_count)?;
        // SAFETY: the caller vouches for the array.
        let places = unsafe { memory::array("dparams", args.dparams, args.dparam_count) }?;
        let pointers: Vec<_> = places.iter().map(|place| place.cast_const()).collect();
        for span in scalar_spans(names, &pointers, 4)? {
            buffers.write(span)?;
        }
        let value = |place: &*mut f32| match accumulate {
            // SAFETY: it is aligned and not null, and the caller vouches for it.
            true => unsafe { place.read() },
            false => 0.0,
        };
        Ok(Some(Gradients {
            values: places.iter().map(value).collect(),
            places: places.to_vec(),
            accumulate,
        }))
    }

    /// Writes the gradients to the caller's memory.
    unsafe fn store(self) {
        for (place, value) in self.places.into_iter().zip(self.values) {
            // SAFETY: it is aligned and not null, and the caller vouches for it.
            unsafe { place.write(value) };
        }
    }
}

/// The gated form of the op, and its order; `None` for XACT_ORDER_PLAIN.
fn gate(op: &AnyActivation, order: i32) -> Result<Option<(&dyn Gated, Order)>> {
    let order = options::order(order)?;
    Ok(order
        .map(|order| Ok::<_, Error>((op.as_gated()?, order)))
        .transpose()?)
}

/// The matrices x and v of a call, or dx and dv.
struct Sides<T> {
    /// If gate and value alternate, both.
    x: Tensor<T>,
    v: Option<Tensor<T>>,
    /// Which of gate and value is first and the length of their blocks, if they alternate.
    interleaved: Option<(Halves, usize)>,
}

impl<T: Element> Sides<T> {
    fn new(
        names: [&'static str; 2],
        args: &xact_activation_args,
        is_gated: bool,
        [x, v]: [xact_matrix; 2],
    ) -> Result<Sides<T>> {
        let xact_activation_args { rows, cols, .. } = *args;
        let interleaved = match is_gated {
            true => options::interleaved(args)?,
            false => None,
        };
        let Some((first, block)) = interleaved else {
            let v = is_gated.then(|| Tensor::new(names[1], v, rows, cols));
            return Ok(Sides {
                x: Tensor::new(names[0], x, rows, cols)?,
                v: v.transpose()?,
                interleaved: None,
            });
        };
        let block = usize::try_from(block).map_err(|_| Error::Block { block, cols })?;
        Ok(Sides {
            x: Tensor::new(names[0], x, rows, cols.saturating_mul(2))?,
            v: None,
            interleaved: Some((first, block)),
        })
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor<T>> {
        [Some(&self.x), self.v.as_ref()].into_iter().flatten()
    }

    /// Whether both have the same addresses and layout.
    fn are(&self, other: &Sides<T>) -> bool {
        let v_is = |v: &Tensor<T>| other.v.as_ref().is_some_and(|other| v.is(other));
        self.x.is(&other.x) && self.v.as_ref().is_none_or(v_is)
    }

    fn are_apart_from(&self, others: &[Option<&Tensor<T>>]) -> bool {
        self.tensors().all(|tensor| tensor.is_apart_from(others))
    }

    /// The inputs of a gated form.
    ///
    /// # Safety
    /// The conditions of `Tensor::input`.
    unsafe fn pair<'a>(&self) -> Pair<'a, T> {
        // SAFETY: the caller vouches for all.
        unsafe {
            match self.interleaved {
                Some((first, block)) => Pair::interleaved(self.x.input(), first, block),
                None => Pair::new(self.x.input(), self.v.as_ref().unwrap_or(&self.x).input()),
            }
        }
    }

    /// The outputs of a gated form, as one argument; `None` if two slices would overlap that are not the halves of one
    /// matrix, or if they are of a plain form.
    ///
    /// # Safety
    /// The conditions of `Tensor::output`.
    unsafe fn pair_mut<'a>(&self) -> Result<Option<PairMut<'a, T>>> {
        // SAFETY: the caller vouches for all.
        unsafe {
            if let Some((first, block)) = self.interleaved {
                return Ok(Some(PairMut::interleaved(self.x.output(), first, block)));
            }
            let Some(v) = &self.v else {
                return Ok(None);
            };
            if self.x.is_apart_from(&[Some(v)]) {
                return Ok(Some(PairMut::new(self.x.output(), v.output())));
            }
            let Some((elements, gate_is_first)) = self.x.halves(v) else {
                return Ok(None);
            };
            let order = match gate_is_first {
                true => Halves::GateFirst,
                false => Halves::ValueFirst,
            };
            Ok(Some(PairMut::halves(elements, self.x.rows(), order)?))
        }
    }

    /// Temporary buffers for x and v.
    fn copies(&self) -> [Vec<T>; 2] {
        [
            self.x.copy(),
            self.v.as_ref().map(Tensor::copy).unwrap_or_default(),
        ]
    }

    /// The outputs in temporary buffers.
    fn pair_in<'a>(&self, [x, v]: [&'a mut Vec<T>; 2]) -> PairMut<'a, T> {
        let rows = self.x.dense();
        match self.interleaved {
            Some((first, block)) => PairMut::interleaved(Output::rows(x, rows), first, block),
            None => PairMut::new(Output::rows(x, rows), Output::rows(v, rows)),
        }
    }
}

pub unsafe fn activation_forward(
    op: *const xact_activation,
    args: *const xact_activation_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let (op, args) = (options::activation(op)?, memory::read(args)?);
        pool::run(|| with_dtype!(args.dtype, T => forward::<T>(&op, &args)))?
    }
}

pub unsafe fn activation_backward(
    op: *const xact_activation,
    args: *const xact_activation_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let (op, args) = (options::activation(op)?, memory::read(args)?);
        pool::run(|| with_dtype!(args.dtype, T => backward::<T>(&op, &args)))?
    }
}

/// Adds the matrices that an activation writes. Each may be the same as x, v or dy. If gate and value alternate, only dx may
/// be x, which has both, and only y may be dy.
fn write_matrices<T: Element>(
    buffers: &mut Buffers,
    interleaved: bool,
    outputs: &[Option<&Tensor<T>>],
) -> Result<()> {
    for output in outputs.iter().flatten().map(|output| output.span()) {
        buffers.write_over(output.clone(), |read| {
            ["x", "v", "dy"].contains(&read.what())
                && output.is_same(read)
                && (!interleaved || (output.what() == "dx") == (read.what() == "x"))
        })?;
    }
    Ok(())
}

unsafe fn forward<T: Element>(op: &AnyActivation, args: &xact_activation_args) -> Result<()> {
    let gate = gate(op, args.order)?;
    let mut buffers = Buffers::default();
    let xv = Sides::<T>::new(["x", "v"], args, gate.is_some(), [args.x, args.v])?;
    let y = Tensor::new("y", args.y, args.rows, args.cols)?;
    for input in xv.tensors() {
        buffers.read(input.span().clone());
    }
    // SAFETY: the caller vouches for the arrays and the scalars.
    let params = unsafe { params::<T>(op, args, &mut buffers) }?;
    write_matrices(&mut buffers, xv.interleaved.is_some(), &[Some(&y)])?;
    // SAFETY: here and below, the caller vouches for the elements, and an output overlaps no other slice.
    unsafe {
        if gate.is_none() && y.is(&xv.x) {
            return Ok(cpu::forward_in_place(op, y.output(), &params).run()?);
        }
        let run = |out: Output<'_, T>| match gate {
            Some((op, order)) => cpu::gated_forward(op, order, xv.pair(), &params, out).run(),
            None => cpu::forward(op, xv.x.input(), &params, out).run(),
        };
        if y.is_apart_from(&[Some(&xv.x), xv.v.as_ref()]) {
            return Ok(run(y.output())?);
        }
        let mut copy = y.copy();
        run(Output::rows(&mut copy, y.dense()))?;
        y.store(&copy);
    }
    Ok(())
}

/// Sets the optional outputs of a backward, y and the gradients of parameters, and runs it.
macro_rules! run_backward {
    ($call:expr, $y:expr, $gradients:expr) => {{
        let mut call = $call;
        if let Some(y) = $y {
            call = call.y(y);
        }
        let gradients: &mut Option<Gradients> = $gradients;
        if let Some(Gradients {
            values, accumulate, ..
        }) = gradients
        {
            call = match accumulate {
                true => call.accumulate(values),
                false => call.gradients(values),
            };
        }
        call.run()
    }};
}

unsafe fn backward<T: Element>(op: &AnyActivation, args: &xact_activation_args) -> Result<()> {
    let gate = gate(op, args.order)?;
    let xv = Sides::<T>::new(["x", "v"], args, gate.is_some(), [args.x, args.v])?;
    let dy = Tensor::new("dy", args.dy, args.rows, args.cols)?;
    let dxv = Sides::<T>::new(["dx", "dv"], args, gate.is_some(), [args.dx, args.dv])?;
    let y = match args.y.ptr.is_null() {
        true => None,
        false => Some(Tensor::new("y", args.y, args.rows, args.cols)?),
    };
    let mut buffers = Buffers::default();
    for input in xv.tensors().chain([&dy]) {
        buffers.read(input.span().clone());
    }
    // SAFETY: the caller vouches for the arrays and the scalars.
    let params = unsafe { params::<T>(op, args, &mut buffers) }?;
    let outputs = [Some(&dxv.x), dxv.v.as_ref(), y.as_ref()];
    write_matrices(&mut buffers, xv.interleaved.is_some(), &outputs)?;
    // SAFETY: as above.
    let mut gradients = unsafe { Gradients::new(op, args, &mut buffers) }?;
    let (x, v, dx, y) = (&xv.x, xv.v.as_ref(), &dxv.x, y.as_ref());
    // SAFETY: here and below, the caller vouches for the elements, and an output overlaps no other slice.
    let y_out = |y: Option<&Tensor<T>>| y.map(|y| unsafe { y.output() });
    // SAFETY: as above.
    unsafe {
        let y_is_apart = y.is_none_or(|y| y.is_apart_from(&[Some(x), v, Some(&dy)]));
        match gate {
            Some((op, order)) => {
                let is_apart =
                    |inputs: &[Option<&Tensor<T>>]| y_is_apart && dxv.are_apart_from(inputs);
                let in_place = dxv.are(&xv) && is_apart(&[Some(&dy), y]);
                let apart = is_apart(&[Some(x), v, Some(&dy), y]);
                let out = match in_place || apart {
                    true => dxv.pair_mut()?,
                    false => None,
                };
                match out {
                    Some(out) if in_place => {
                        let call =
                            cpu::gated_backward_in_place(op, order, out, dy.input(), &params);
                        run_backward!(call, y_out(y), &mut gradients)?;
                    }
                    Some(out) => {
                        let call =
                            cpu::gated_backward(op, order, xv.pair(), dy.input(), &params, out);
                        run_backward!(call, y_out(y), &mut gradients)?;
                    }
                    None => {
                        let [mut of_x, mut of_v] = dxv.copies();
                        let mut of_y = y.map(Tensor::copy);
                        let out = dxv.pair_in([&mut of_x, &mut of_v]);
                        let call =
                            cpu::gated_backward(op, order, xv.pair(), dy.input(), &params, out);
                        let y_copy = of_y.as_mut().map(|y| Output::rows(y, dy.dense()));
                        run_backward!(call, y_copy, &mut gradients)?;
                        dx.store(&of_x);
                        store(dxv.v.as_ref(), Some(of_v));
                        store(y, of_y);
                    }
                }
            }
            None => {
                let in_place = dx.is(&dy) && dx.is_apart_from(&[Some(x), y]);
                let apart = dx.is_apart_from(&[Some(x), Some(&dy), y]);
                let y_is_apart = y.is_none_or(|y| y.is_apart_from(&[Some(x), Some(&dy)]));
                if y_is_apart && in_place {
                    let call = cpu::backward_in_place(op, x.input(), dx.output(), &params);
                    run_backward!(call, y_out(y), &mut gradients)?;
                } else if y_is_apart && apart {
                    let call = cpu::backward(op, x.input(), dy.input(), &params, dx.output());
                    run_backward!(call, y_out(y), &mut gradients)?;
                } else {
                    let (mut of_x, mut of_y) = (dx.copy(), y.map(Tensor::copy));
                    let out = Output::rows(&mut of_x, dx.dense());
                    let call = cpu::backward(op, x.input(), dy.input(), &params, out);
                    let y_copy = of_y.as_mut().map(|y| Output::rows(y, dx.dense()));
                    run_backward!(call, y_copy, &mut gradients)?;
                    dx.store(&of_x);
                    store(y, of_y);
                }
            }
        }
        if let Some(gradients) = gradients {
            gradients.store();
        }
    }
    Ok(())
}

/// Copies `copy` to the tensor, if both exist.
unsafe fn store<T: Element>(tensor: Option<&Tensor<T>>, copy: Option<Vec<T>>) {
    if let (Some(tensor), Some(copy)) = (tensor, copy) {
        // SAFETY: the caller vouches for the elements.
        unsafe { tensor.store(&copy) };
    }
}

/// Tokens of any id type.
#[derive(Clone, Copy)]
enum AnyTokens<'a> {
    U8(Tokens<'a, u8>),
    U16(Tokens<'a, u16>),
    U32(Tokens<'a, u32>),
    I32(Tokens<'a, i32>),
    I64(Tokens<'a, i64>),
}

/// Evaluates `$body` with `$tokens` as the tokens of any type.
macro_rules! with_tokens {
    ($any:expr, $tokens:ident => $body:expr) => {
        match $any {
            AnyTokens::U8($tokens) => $body,
            AnyTokens::U16($tokens) => $body,
            AnyTokens::U32($tokens) => $body,
            AnyTokens::I32($tokens) => $body,
            AnyTokens::I64($tokens) => $body,
        }
    };
}

/// The strategy and the tokens of a decision about `labels` labels.
unsafe fn decision<'a>(
    decision: *const xact_decision,
    labels: u64,
    buffers: &mut Buffers,
) -> Result<(&'a Goldfish, AnyTokens<'a>)> {
    // SAFETY: the caller vouches for the struct and for the handle in it.
    let (given, strategy): (_, &xact_goldfish) = unsafe {
        let given = memory::read(decision)?;
        (given, memory::handle("goldfish", given.goldfish)?)
    };
    // SAFETY: the caller vouches for the arrays.
    let tokens = unsafe {
        match given.id_type {
            XACT_ID_U8 => AnyTokens::U8(tokens(&given, labels, buffers)?),
            XACT_ID_U16 => AnyTokens::U16(tokens(&given, labels, buffers)?),
            XACT_ID_U32 => AnyTokens::U32(tokens(&given, labels, buffers)?),
            XACT_ID_I32 => AnyTokens::I32(tokens(&given, labels, buffers)?),
            XACT_ID_I64 => AnyTokens::I64(tokens(&given, labels, buffers)?),
            other => return Err(unknown("id_type", other.into(), "XACT_ID")),
        }
    };
    Ok((strategy.strategy(), tokens))
}

/// An input array; adds its span to `buffers`.
unsafe fn read_array<'a, T>(
    buffers: &mut Buffers,
    what: &'static str,
    ptr: *const T,
    len: u64,
) -> Result<&'a [T]> {
    // SAFETY: the caller vouches for the array.
    let array = unsafe { memory::array(what, ptr, len) }?;
    buffers.read(memory::span(what, ptr, len)?);
    Ok(array)
}

/// An output array; `None` if the pointer is null. Fails if it overlaps another buffer.
unsafe fn write_array<'a, T>(
    buffers: &mut Buffers,
    what: &'static str,
    ptr: *mut T,
    len: u64,
) -> Result<Option<&'a mut [T]>> {
    if ptr.is_null() {
        return Ok(None);
    }
    buffers.write(memory::span(what, ptr, len)?)?;
    // SAFETY: it is aligned and not null, and apart from all else; the caller vouches for the elements.
    Ok(Some(unsafe {
        std::slice::from_raw_parts_mut(ptr, len as usize)
    }))
}

unsafe fn tokens<'a, I: TokenId>(
    given: &xact_decision,
    labels: u64,
    buffers: &mut Buffers,
) -> Result<Tokens<'a, I>> {
    // SAFETY: the caller vouches for the arrays.
    unsafe {
        let ids = read_array(buffers, "hash_ids", given.hash_ids.cast(), labels)?;
        let halo = read_array(buffers, "the halo", given.halo.cast(), given.halo_len)?;
        let exempt = read_array(buffers, "the exempt ids", given.exempt, given.exempt_len)?;
        let tokens = match given.layout {
            XACT_LAYOUT_ROWS => {
                let len = match given.row_len {
                    0 => labels,
                    len => len,
                };
                Tokens::rows(ids, usize::try_from(len).unwrap_or(usize::MAX))
            }
            XACT_LAYOUT_DOCUMENTS => {
                let offsets = read_array(
                    buffers,
                    "cu_seqlens",
                    given.cu_seqlens,
                    given.cu_seqlens_len,
                )?;
                Tokens::documents(ids, offsets)
            }
            XACT_LAYOUT_CHUNKS => {
                let (cu_seqlens, preceding) = (given.cu_seqlens, given.preceding);
                Tokens::chunks(
                    ids,
                    read_array(buffers, "cu_seqlens", cu_seqlens, given.cu_seqlens_len)?,
                    read_array(buffers, "preceding", preceding, given.preceding_len)?,
                )
            }
            other => return Err(unknown("layout", other.into(), "XACT_LAYOUT")),
        };
        let rows = usize::try_from(given.interleaved.max(1)).unwrap_or(usize::MAX);
        Ok(tokens.halo(halo).exempt(exempt).interleaved(rows))
    }
}

pub unsafe fn goldfish_mask(args: *const xact_goldfish_args) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let args = memory::read(args)?;
        pool::run(|| mask(&args))?
    }
}

unsafe fn mask(args: &xact_goldfish_args) -> Result<()> {
    let mut buffers = Buffers::default();
    // SAFETY: the caller vouches for the arrays.
    unsafe {
        let (strategy, tokens) = decision(args.decision, args.labels, &mut buffers)?;
        let keep = write_array(&mut buffers, "keep", args.keep, args.labels)?;
        let weights = write_array(&mut buffers, "weights", args.weights, args.labels)?;
        let counts = write_array(&mut buffers, "counts", args.counts, 2)?;
        let found = with_tokens!(tokens, tokens => {
            let mut call = goldfish::mask(strategy, tokens);
            if let Some(keep) = keep {
                call = call.keep(keep);
            }
            if let Some(weights) = weights {
                call = call.weights(weights);
            }
            call.run()
        })?;
        if let Some(counts) = counts {
            counts.copy_from_slice(&[found.kept as i64, found.dropped as i64]);
        }
    }
    Ok(())
}

/// The arguments that all calls of the loss have.
struct Call<'a, L> {
    op: &'a CrossEntropy,
    args: &'a xact_cross_entropy_args,
    labels: &'a [L],
    weights: Option<&'a [f32]>,
    decision: Option<(&'a Goldfish, AnyTokens<'a>)>,
    buffers: Buffers,
}

/// The optional outputs of a forward.
struct Outputs<'a> {
    loss: Option<&'a mut [f32]>,
    z_loss: Option<&'a mut [f32]>,
    lse: Option<&'a mut [f32]>,
    argmax: Option<&'a mut [i32]>,
    saved: Option<&'a mut [u8]>,
}

/// Sets the weights and the Goldfish decision of a call.
macro_rules! set_rows {
    ($call:ident, $from:expr) => {{
        let mut call = $call;
        if let Some(weights) = $from.weights {
            call = call.weights(weights);
        }
        match $from.decision {
            Some((strategy, tokens)) => {
                with_tokens!(tokens, tokens => call.goldfish(strategy, tokens))
            }
            None => call,
        }
    }};
}

/// Sets the outputs and the normalizer of a forward.
macro_rules! set_outputs {
    ($call:ident, $outputs:expr, $normalizer:expr) => {{
        let (mut call, outputs) = ($call, $outputs);
        if let Some(loss) = outputs.loss {
            call = call.loss(loss);
        }
        if let Some(z_loss) = outputs.z_loss {
            call = call.z_loss(z_loss);
        }
        if let Some(lse) = outputs.lse {
            call = call.lse(lse);
        }
        if let Some(argmax) = outputs.argmax {
            call = call.argmax(argmax);
        }
        if let Some(saved) = outputs.saved {
            call = call.saved(saved);
        }
        match $normalizer {
            Some(normalizer) => call.normalizer(normalizer),
            None => call,
        }
    }};
}

impl<'a, L: Label> Call<'a, L> {
    unsafe fn new(op: &'a CrossEntropy, args: &'a xact_cross_entropy_args) -> Result<Self> {
        let mut buffers = Buffers::default();
        // SAFETY: the caller vouches for the arrays.
        unsafe {
            let labels = read_array(&mut buffers, "labels", args.labels.cast(), args.rows)?;
            let weights = match args.weights.is_null() {
                true => None,
                false => Some(read_array(
                    &mut buffers,
                    "weights",
                    args.weights,
                    args.rows,
                )?),
            };
            let decision = match args.decision.is_null() {
                true => None,
                false => Some(decision(args.decision, args.rows, &mut buffers)?),
            };
            Ok(Call {
                op,
                args,
                labels,
                weights,
                decision,
                buffers,
            })
        }
    }

    fn logits<T: Element>(&self) -> Result<Tensor<T>> {
        Tensor::new("logits", self.args.logits, self.args.rows, self.args.cols)
    }

    /// The rank's columns; without ranks, all of the `own` classes.
    fn shard(&self, own: u64) -> Shard {
        match (self.args.first_class, self.args.classes) {
            (0, 0) => Shard::new(0, own),
            (first_class, classes) => Shard::new(first_class, classes),
        }
    }

    /// The caller's normalizer, if any.
    unsafe fn normalizer(&mut self) -> Result<Option<f32>> {
        if self.args.normalizer.is_null() {
            return Ok(None);
        }
        let ptr = self.args.normalizer;
        // SAFETY: the caller vouches for the number.
        let number = unsafe { read_array(&mut self.buffers, "the normalizer", ptr, 1) }?;
        Ok(number.first().copied())
    }

    /// The upstream gradient of each row; `None` if `dloss` is null.
    unsafe fn upstream(&mut self) -> Result<Option<Vec<f32>>> {
        let xact_cross_entropy_args {
            dloss,
            dloss_stride,
            rows,
            ..
        } = *self.args;
        if dloss.is_null() || rows == 0 {
            return Ok(None);
        }
        // With a negative stride, the first address that is read is the last row's.
        let too_large = Error::TooLarge {
            rows,
            cols: dloss_stride.unsigned_abs(),
        };
        let steps = dloss_stride.unsigned_abs().checked_mul(rows - 1);
        let steps = steps
            .filter(|&steps| steps < isize::MAX as u64 / 4)
            .ok_or(too_large)?;
        let first = match dloss_stride < 0 {
            true => dloss.wrapping_sub(steps as usize),
            false => dloss,
        };
        // SAFETY: the caller vouches for the numbers.
        let numbers = unsafe { read_array(&mut self.buffers, "dloss", first, steps + 1) }?;
        let step = dloss_stride.unsigned_abs() as usize;
        let mut each: Vec<f32> = (0..rows as usize).map(|row| numbers[row * step]).collect();
        if dloss_stride < 0 {
            each.reverse();
        }
        Ok(Some(each))
    }

    /// The span of the saved bytes of `ranks` ranks.
    fn saved_span(&self, what: &'static str, address: usize, ranks: u64) -> Result<Span> {
        let words = self.op.saved_bytes(self.args.rows) / 4;
        let span = Span::new(what, address as u64, ranks, words, words, 4)?;
        memory::check_addressable(&span, words)?;
        Ok(span)
    }

    /// The gathered bytes of all ranks.
    unsafe fn gathered(&mut self) -> Result<&'a [u8]> {
        let ptr = self.args.gathered.cast::<u8>();
        let span = self.saved_span("gathered", ptr.addr(), self.args.ranks.max(1))?;
        let range = span.range();
        self.buffers.read(span);
        // SAFETY: the caller vouches for the bytes.
        unsafe { memory::array("gathered", ptr, range.end - range.start) }
    }

    /// The output `saved`.
    unsafe fn saved(&mut self) -> Result<&'a mut [u8]> {
        let ptr = self.args.saved.cast::<u8>();
        let span = self.saved_span("saved", ptr.addr(), 1)?;
        let range = span.range();
        self.buffers.write(span)?;
        if range.is_empty() {
            return Ok(&mut []);
        }
        // SAFETY: it is not null, and apart from all else; the caller vouches for the bytes.
        Ok(unsafe { std::slice::from_raw_parts_mut(ptr, (range.end - range.start) as usize) })
    }

    unsafe fn outputs(&mut self) -> Result<Outputs<'a>> {
        let (args, rows) = (self.args, self.args.rows);
        // SAFETY: the caller vouches for the arrays.
        unsafe {
            let outputs = Outputs {
                loss: write_array(&mut self.buffers, "loss", args.loss, rows)?,
                z_loss: write_array(&mut self.buffers, "z_loss", args.z_loss, rows)?,
                lse: write_array(&mut self.buffers, "lse", args.lse, rows)?,
                argmax: write_array(&mut self.buffers, "argmax", args.argmax, rows)?,
                saved: match args.saved.is_null() {
                    true => None,
                    false => Some(self.saved()?),
                },
            };
            memory::check_place("summary", args.summary)?;
            let words = size_of::<xact_cross_entropy_summary>() as u64 / 8;
            let span = memory::span("summary", args.summary.cast::<u64>(), words)?;
            self.buffers.write(span)?;
            Ok(outputs)
        }
    }

    unsafe fn store(&self, summary: CrossEntropySummary) {
        // SAFETY: the two structs are the same, as a test of their layout sees to; the caller vouches for the place.
        unsafe {
            self.args
                .summary
                .cast::<CrossEntropySummary>()
                .write(summary)
        };
    }
}

/// Reads the options and arguments of a loss, and evaluates `$body` in the pool, with the types of the logits and labels.
macro_rules! in_pool {
    ($op:ident, $args:ident, $T:ident, $L:ident => $body:expr) => {{
        // SAFETY: the caller vouches for all of it.
        let ($op, $args) = unsafe { (options::cross_entropy($op)?, memory::read($args)?) };
        // SAFETY: as above.
        pool::run(|| unsafe {
            with_dtype!($args.dtype, $T => with_labels!($args.label_type, $L => $body(&$op, &$args)))
        })?
    }};
}

pub unsafe fn cross_entropy_forward(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> Result<()> {
    in_pool!(op, args, T, L => loss_forward::<T, L>)
}

unsafe fn loss_forward<T: Element, L: Label>(
    op: &CrossEntropy,
    args: &xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut call = Call::<L>::new(op, args)?;
        let logits = call.logits::<T>()?;
        call.buffers.read(logits.span().clone());
        let normalizer = call.normalizer()?;
        let outputs = call.outputs()?;
        let forward = loss::forward(op, logits.input(), call.labels);
        let forward = set_rows!(forward, call);
        let summary = set_outputs!(forward, outputs, normalizer).run()?;
        call.store(summary);
    }
    Ok(())
}

pub unsafe fn cross_entropy_forward_with_gradient(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> Result<()> {
    in_pool!(op, args, T, L => loss_forward_with_gradient::<T, L>)
}

unsafe fn loss_forward_with_gradient<T: Element, L: Label>(
    op: &CrossEntropy,
    args: &xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut call = Call::<L>::new(op, args)?;
        let logits = call.logits::<T>()?;
        let normalizer = call.normalizer()?;
        let dloss = call.upstream()?;
        call.buffers.write(logits.span().clone())?;
        let outputs = call.outputs()?;
        let both = loss::forward_with_gradient(op, logits.output(), call.labels);
        let both = set_rows!(both, call);
        let both = match &dloss {
            Some(dloss) => both.dloss(dloss),
            None => both,
        };
        let summary = set_outputs!(both, outputs, normalizer).run()?;
        call.store(summary);
    }
    Ok(())
}

pub unsafe fn cross_entropy_backward(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> Result<()> {
    in_pool!(op, args, T, L => loss_backward::<T, L>)
}

unsafe fn loss_backward<T: Element, L: Label>(
    op: &CrossEntropy,
    args: &xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut call = Call::<L>::new(op, args)?;
        let logits = call.logits::<T>()?;
        let dlogits = Tensor::<T>::new("dlogits", args.dlogits, args.rows, args.cols)?;
        let saved = call.gathered()?;
        call.buffers.read(logits.span().clone());
        let normalizer = call.normalizer()?.unwrap_or(1.0);
        let dloss = call.upstream()?;
        let in_place = dlogits.is(&logits);
        call.buffers.write_over(dlogits.span().clone(), |read| {
            in_place && read.what() == "logits"
        })?;
        let shard = match (args.first_class, args.classes) {
            (0, 0) => None,
            _ => Some(call.shard(0)),
        };
        let run = |backward: loss::Backward<'_, T, L>| {
            let backward = set_rows!(backward, call);
            let backward = match shard {
                Some(shard) => backward.shard(shard),
                None => backward,
            };
            match &dloss {
                Some(dloss) => backward.dloss(dloss).run(),
                None => backward.run(),
            }
        };
        let labels = call.labels;
        if in_place {
            let out = dlogits.output();
            run(loss::backward_in_place(op, out, labels, saved, normalizer))?;
        } else if dlogits.is_apart_from(&[Some(&logits)]) {
            let (logits, out) = (logits.input(), dlogits.output());
            run(loss::backward(op, logits, labels, saved, normalizer, out))?;
        } else {
            let mut copy = dlogits.copy();
            let out = Output::rows(&mut copy, dlogits.dense());
            let logits = logits.input();
            run(loss::backward(op, logits, labels, saved, normalizer, out))?;
            dlogits.store(&copy);
        }
    }
    Ok(())
}

pub unsafe fn cross_entropy_partial_stats(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> Result<()> {
    in_pool!(op, args, T, L => loss_partial_stats::<T, L>)
}

unsafe fn loss_partial_stats<T: Element, L: Label>(
    op: &CrossEntropy,
    args: &xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut call = Call::<L>::new(op, args)?;
        let logits = call.logits::<T>()?;
        call.buffers.read(logits.span().clone());
        let with_argmax = options::wide_flag("with_argmax", args.with_argmax)?;
        let saved = call.saved()?;
        let shard = call.shard(op.vocab.unwrap_or(args.cols));
        let partial = loss::partial(op, logits.input(), call.labels, shard, saved);
        let partial = set_rows!(partial, call);
        match with_argmax {
            true => partial.with_argmax().run()?,
            false => partial.run()?,
        }
    }
    Ok(())
}

pub unsafe fn cross_entropy_finish(
    op: *const xact_cross_entropy,
    args: *const xact_cross_entropy_args,
) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let (op, args) = (options::cross_entropy(op)?, memory::read(args)?);
        pool::run(|| with_labels!(args.label_type, L => loss_finish::<L>(&op, &args)))?
    }
}

unsafe fn loss_finish<L: Label>(op: &CrossEntropy, args: &xact_cross_entropy_args) -> Result<()> {
    // SAFETY: the caller vouches for all of it.
    unsafe {
        let mut call = Call::<L>::new(op, args)?;
        let gathered = call.gathered()?;
        let normalizer = call.normalizer()?;
        let outputs = call.outputs()?;
        let shard = call.shard(op.vocab.unwrap_or(0));
        let finish = loss::finish(op, call.labels, shard, gathered);
        let finish = set_rows!(finish, call);
        let summary = set_outputs!(finish, outputs, normalizer).run()?;
        call.store(summary);
    }
    Ok(())
}

mod linear_cross_entropy;

pub use linear_cross_entropy::{
    kept_rows, linear_cross_entropy_backward, linear_cross_entropy_forward,
    linear_cross_entropy_forward_with_gradient, linear_cross_entropy_partial_stats,
};
