//! Bad calls return an error with a text, and write nothing.

use std::ffi::c_void;
use std::ptr;

use super::goldfish::create;
use super::*;
use crate::status::{Failure, guard};

const ROWS: usize = 2;
const COLS: usize = 6;

/// The byte that fills outputs before a call that must not write.
const BEFORE: f32 = 77.0;

/// A misaligned address.
fn odd<T>(ptr: *mut T) -> *mut T {
    ptr.cast::<u8>().wrapping_add(1).cast()
}

struct Activations<'a> {
    backend: &'a Backend,
    op: xact_activation,
    args: xact_activation_args,
    params: Box<[*const c_void; 3]>,
    dparams: Box<[*mut f32; 3]>,
    /// x, v, dy, y, dx, dv, alpha, dalpha, the workspace.
    buffers: Vec<Buffer>,
}

impl Activations<'_> {
    /// A gated call with all tensors.
    fn new(backend: &Backend) -> Activations<'_> {
        let (len, before) = (ROWS * COLS, vec![BEFORE; ROWS * COLS]);
        let mut buffers: Vec<Buffer> = (0..3)
            .map(|seed| backend.put(&elements::<f32>(noise(len, seed))))
            .collect();
        buffers.extend((0..3).map(|_| backend.put(&before)));
        buffers.push(backend.put(&[0.25_f32]));
        buffers.push(backend.put(&[BEFORE]));
        buffers.push(backend.workspace(1 << 12));
        let mut args = xact_activation_args {
            rows: ROWS as u64,
            cols: COLS as u64,
            dtype: XACT_DTYPE_F32,
            order: XACT_ORDER_FIRST,
            param_count: 1,
            dparam_count: 1,
            workspace: buffers[8].ptr(),
            workspace_bytes: 1 << 12,
            ..sized()
        };
        let params = Box::new([
            buffers[6].ptr::<c_void>().cast_const(),
            ptr::null(),
            ptr::null(),
        ]);
        let dparams = Box::new([buffers[7].ptr(), ptr::null_mut(), ptr::null_mut()]);
        args.params = params.as_ptr();
        args.dparams = dparams.as_ptr();
        let matrices = [
            &mut args.x,
            &mut args.v,
            &mut args.dy,
            &mut args.y,
            &mut args.dx,
            &mut args.dv,
        ];
        for (matrix, buffer) in matrices.into_iter().zip(&buffers) {
            matrix.ptr = buffer.ptr();
        }
        Activations {
            backend,
            op: activation("xsilu"),
            args,
            params,
            dparams,
            buffers,
        }
    }

    /// Fails unless the calls return this status and write nothing.
    #[track_caller]
    fn refuses(&self, status: xact_status, forward: bool) {
        if forward {
            assert_eq!(self.backend.forward(&self.op, &self.args), status);
            assert!(!last_error().is_empty());
        }
        assert_eq!(
            self.backend.backward(&self.op, &self.args),
            status,
            "{}",
            last_error()
        );
        assert!(!last_error().is_empty());
        for buffer in &self.buffers[3..6] {
            assert_eq!(buffer.get::<f32>(ROWS * COLS), [BEFORE; ROWS * COLS]);
        }
        assert_eq!(self.buffers[7].get::<f32>(1), [BEFORE]);
    }
}

#[test]
fn activations_refuse_what_can_be_seen() {
    on_both(|backend| {
        /// The change that makes the call wrong, whether it also applies to a forward, and the expected text.
        type Wrong = (fn(&mut Activations<'_>), bool, xact_status);
        let all: &[Wrong] = &[
            // Structs.
            (|c| c.op.size = 0, true, XACT_ERROR_STRUCT_SIZE),
            (|c| c.args.size += 4, true, XACT_ERROR_STRUCT_SIZE),
            (|c| c.args.size = 1 << 60, true, XACT_ERROR_STRUCT_SIZE),
            (|c| c.args.size = 8, true, XACT_ERROR_ENUM),
            // Numbers other than the named constants.
            (|c| c.args.dtype = 0, true, XACT_ERROR_ENUM),
            (|c| c.args.dtype = 4, true, XACT_ERROR_ENUM),
            (|c| c.args.dtype = i32::MIN, true, XACT_ERROR_ENUM),
            (|c| c.args.order = 3, true, XACT_ERROR_ENUM),
            (|c| c.args.order = -1, true, XACT_ERROR_ENUM),
            (|c| c.args.param_dtype = 9, true, XACT_ERROR_ENUM),
            (
                |c| c.args.param_dtype = XACT_DTYPE_F16,
                true,
                XACT_ERROR_PARAM_DTYPE,
            ),
            (|c| c.op.parameters = 2, true, XACT_ERROR_ENUM),
            (|c| c.op.compat = 3, true, XACT_ERROR_ENUM),
            (|c| c.args.accumulate = 2, false, XACT_ERROR_ENUM),
            // Names.
            (|c| c.op.name = ptr::null(), true, XACT_ERROR_NULL),
            (|c| c.op.name = c"".as_ptr(), true, XACT_ERROR_UNKNOWN_OP),
            (
                |c| c.op.name = c"\xff\xfe".as_ptr(),
                true,
                XACT_ERROR_UNKNOWN_OP,
            ),
            (
                |c| c.op.name = c"cross_entropy".as_ptr(),
                true,
                XACT_ERROR_UNKNOWN_OP,
            ),
            (
                |c| {
                    // xIELU has no gated forms, and has two parameters.
                    c.op.name = c"xielu".as_ptr();
                    c.params[1] = c.params[0];
                    c.args.param_count = 2;
                },
                true,
                XACT_ERROR_NOT_GATED,
            ),
            // Counts.
            (|c| c.args.param_count = 0, true, XACT_ERROR_LENGTH),
            (|c| c.args.param_count = 2, true, XACT_ERROR_LENGTH),
            (|c| c.args.param_count = u64::MAX, true, XACT_ERROR_LENGTH),
            (|c| c.args.dparam_count = 0, false, XACT_ERROR_LENGTH),
            (|c| c.args.dparam_count = 2, false, XACT_ERROR_LENGTH),
            (|c| c.args.dparam_count = u64::MAX, false, XACT_ERROR_LENGTH),
            // Null.
            (|c| c.args.params = ptr::null(), true, XACT_ERROR_NULL),
            (|c| c.params[0] = ptr::null(), true, XACT_ERROR_NULL),
            (|c| c.args.dparams = ptr::null(), false, XACT_ERROR_NULL),
            (|c| c.dparams[0] = ptr::null_mut(), false, XACT_ERROR_NULL),
            (|c| c.args.x.ptr = ptr::null_mut(), true, XACT_ERROR_NULL),
            (|c| c.args.v.ptr = ptr::null_mut(), true, XACT_ERROR_NULL),
            (|c| c.args.dy.ptr = ptr::null_mut(), false, XACT_ERROR_NULL),
            (|c| c.args.dx.ptr = ptr::null_mut(), false, XACT_ERROR_NULL),
            (|c| c.args.dv.ptr = ptr::null_mut(), false, XACT_ERROR_NULL),
            // Misaligned.
            (
                |c| c.args.params = odd(c.args.params.cast_mut()),
                true,
                XACT_ERROR_MISALIGNED,
            ),
            (
                |c| c.params[0] = odd(c.params[0].cast_mut()),
                true,
                XACT_ERROR_MISALIGNED,
            ),
            (
                |c| c.dparams[0] = odd(c.dparams[0]),
                false,
                XACT_ERROR_MISALIGNED,
            ),
            (
                |c| c.args.x.ptr = odd(c.args.x.ptr),
                true,
                XACT_ERROR_MISALIGNED,
            ),
            (
                |c| c.args.v.ptr = odd(c.args.v.ptr),
                true,
                XACT_ERROR_MISALIGNED,
            ),
            (
                |c| c.args.y.ptr = odd(c.args.y.ptr),
                true,
                XACT_ERROR_MISALIGNED,
            ),
            (
                |c| c.args.dy.ptr = odd(c.args.dy.ptr),
                false,
                XACT_ERROR_MISALIGNED,
            ),
            (
                |c| c.args.dx.ptr = odd(c.args.dx.ptr),
                false,
                XACT_ERROR_MISALIGNED,
            ),
            (
                |c| c.args.dv.ptr = odd(c.args.dv.ptr),
                false,
                XACT_ERROR_MISALIGNED,
            ),
            // Shapes.
            (|c| c.args.x.pitch = 5, true, XACT_ERROR_PITCH),
            (|c| c.args.y.pitch = 1, true, XACT_ERROR_PITCH),
            (|c| c.args.dx.pitch = 5, false, XACT_ERROR_PITCH),
            (|c| c.args.rows = u64::MAX, true, XACT_ERROR_TOO_LARGE),
            (|c| c.args.cols = u64::MAX, true, XACT_ERROR_TOO_LARGE),
            (
                |c| (c.args.rows, c.args.cols) = (1 << 33, 1 << 33),
                true,
                XACT_ERROR_TOO_LARGE,
            ),
            // Overlap.
            (
                |c| c.args.y.ptr = c.args.x.ptr.wrapping_byte_add(4),
                true,
                XACT_ERROR_OVERLAP,
            ),
            (
                |c| c.args.y.ptr = c.params[0].cast_mut(),
                true,
                XACT_ERROR_OVERLAP,
            ),
            (
                |c| c.args.dx.ptr = c.args.dy.ptr.wrapping_byte_add(8),
                false,
                XACT_ERROR_OVERLAP,
            ),
            (|c| c.args.dx.ptr = c.args.dv.ptr, false, XACT_ERROR_OVERLAP),
            (|c| c.args.y.ptr = c.args.dx.ptr, false, XACT_ERROR_OVERLAP),
            (
                |c| c.dparams[0] = c.args.dx.ptr.cast(),
                false,
                XACT_ERROR_OVERLAP,
            ),
            (
                |c| c.dparams[0] = c.args.x.ptr.cast(),
                false,
                XACT_ERROR_OVERLAP,
            ),
            (
                |c| c.dparams[0] = c.params[0].cast_mut().cast(),
                false,
                XACT_ERROR_OVERLAP,
            ),
        ];
        for (number, &(wrong, forward, status)) in all.iter().enumerate() {
            let mut call = Activations::new(backend);
            ok(Activations::new(backend).run());
            wrong(&mut call);
            eprintln!("activation {number}, host: {}", backend.is_host());
            call.refuses(status, forward);
        }
        // A null struct.
        assert_eq!(refused_null(backend), [XACT_ERROR_NULL; 3]);
        if !backend.is_host() {
            let of_workspace: &[Wrong] = &[
                (|c| c.args.workspace_bytes = 0, false, XACT_ERROR_WORKSPACE),
                (
                    |c| c.args.workspace = ptr::null_mut(),
                    false,
                    XACT_ERROR_NULL,
                ),
                (
                    |c| c.args.workspace = odd(c.args.workspace),
                    false,
                    XACT_ERROR_MISALIGNED,
                ),
                (
                    |c| c.args.workspace = c.args.dx.ptr,
                    false,
                    XACT_ERROR_OVERLAP,
                ),
                (|c| c.args.blocks = -2, true, XACT_ERROR_ENUM),
            ];
            for &(wrong, forward, status) in of_workspace {
                let mut call = Activations::new(backend);
                wrong(&mut call);
                call.refuses(status, forward);
            }
            for blocks in [XACT_BLOCKS_RESIDENT, 1, i32::MAX] {
                let mut call = Activations::new(backend);
                call.args.blocks = blocks;
                ok(call.run());
            }
        }
    });
}

impl Activations<'_> {
    fn run(&self) -> xact_status {
        self.backend.backward(&self.op, &self.args)
    }
}

/// The expected texts for null structs.
fn refused_null(backend: &Backend) -> [xact_status; 3] {
    let call = Activations::new(backend);
    let (op, args): (*const _, *const _) = (&call.op, &call.args);
    #[cfg(feature = "cuda")]
    if let Some(Stream { handle, stream }) = backend.stream() {
        let stream = stream.cu_stream().cast();
        return unsafe {
            [
                xact_activation_forward(ptr::null(), stream, op, args),
                xact_activation_forward(*handle, stream, ptr::null(), args),
                xact_activation_forward(*handle, stream, op, ptr::null()),
            ]
        };
    }
    unsafe {
        [
            xact_activation_forward_host(ptr::null(), ptr::null()),
            xact_activation_backward_host(ptr::null(), args),
            xact_activation_backward_host(op, ptr::null()),
        ]
    }
}

struct Losses {
    op: xact_cross_entropy,
    args: xact_cross_entropy_args,
    decision: Box<xact_decision>,
    /// logits, labels, weights, dloss, the normalizer, gathered, ids, the workspace.
    inputs: Vec<Buffer>,
    /// dlogits, loss, z_loss, lse, argmax, saved, summary.
    outputs: Vec<Buffer>,
}

/// The size in bytes of every output.
const ROOM: usize = 128;

impl Losses {
    fn new(backend: &Backend, goldfish: *const crate::goldfish::xact_goldfish) -> Losses {
        let inputs = vec![
            backend.put(&elements::<f32>(noise(ROWS * COLS, 1))),
            backend.put(&[3_i64, 0]),
            backend.put(&[1.0_f32, 2.0]),
            backend.put(&[1.0_f32, 2.0]),
            backend.put(&[2.0_f32]),
            backend.workspace(40),
            backend.put(&[5_i32, 6]),
            backend.workspace(1 << 15),
        ];
        let outputs: Vec<Buffer> = (0..7).map(|_| backend.put(&[BEFORE; ROOM / 4])).collect();
        let decision = Box::new(xact_decision {
            goldfish,
            hash_ids: inputs[6].ptr(),
            id_type: XACT_ID_I32,
            ..sized()
        });
        let mut args = xact_cross_entropy_args {
            rows: ROWS as u64,
            cols: COLS as u64,
            dtype: XACT_DTYPE_F32,
            label_type: XACT_ID_I64,
            labels: inputs[1].ptr(),
            weights: inputs[2].ptr(),
            dloss: inputs[3].ptr(),
            dloss_stride: 1,
            normalizer: inputs[4].ptr(),
            gathered: inputs[5].ptr(),
            decision: &*decision,
            loss: outputs[1].ptr(),
            z_loss: outputs[2].ptr(),
            lse: outputs[3].ptr(),
            argmax: outputs[4].ptr(),
            saved: outputs[5].ptr(),
            summary: outputs[6].ptr(),
            workspace: inputs[7].ptr(),
            workspace_bytes: 1 << 15,
            ..sized()
        };
        args.logits.ptr = inputs[0].ptr();
        args.dlogits.ptr = outputs[0].ptr();
        Losses {
            op: cross_entropy(),
            args,
            decision,
            inputs,
            outputs,
        }
    }
}

#[test]
fn losses_refuse_what_can_be_seen() {
    use Loss::{Backward, Finish, Forward, PartialStats, WithGradient};
    let strategy = xact_goldfish_strategy {
        kind: XACT_STRATEGY_HASH64,
        k: 4,
        h: 1,
        ..sized()
    };
    let goldfish = create(&strategy);
    let all = [Forward, WithGradient, Backward, PartialStats, Finish];
    let losses = &[Forward, WithGradient, Finish][..];
    let gradients = &[WithGradient, Backward][..];
    let of_logits = &[Forward, WithGradient, Backward, PartialStats][..];
    let of_gathered = &[Backward, Finish][..];
    let (all, backward) = (&all[..], &[Backward][..]);
    /// The change that makes the call wrong, the functions that it applies to, and the expected text.
    type Wrong<'a> = (fn(&mut Losses), &'a [Loss], xact_status);
    let wrong: &[Wrong<'_>] = &[
        (|c| c.op.size = 7, all, XACT_ERROR_STRUCT_SIZE),
        (|c| c.args.size = 0, all, XACT_ERROR_STRUCT_SIZE),
        (|c| c.decision.size = 0, all, XACT_ERROR_STRUCT_SIZE),
        (|c| c.op.normalizer = 4, all, XACT_ERROR_ENUM),
        (|c| c.op.dropped_loss = 2, all, XACT_ERROR_ENUM),
        (|c| c.op.empty_is_nan = -1, all, XACT_ERROR_ENUM),
        (|c| c.op.label_smoothing = 1.0, all, XACT_ERROR_OUT_OF_RANGE),
        (
            |c| c.op.label_smoothing = f32::NAN,
            all,
            XACT_ERROR_OUT_OF_RANGE,
        ),
        (|c| c.op.z_loss = -1.0, all, XACT_ERROR_OUT_OF_RANGE),
        (|c| c.op.softcap = -1.0, all, XACT_ERROR_OUT_OF_RANGE),
        (|c| c.op.softcap = f32::NAN, all, XACT_ERROR_OUT_OF_RANGE),
        (|c| c.op.vocab = 7, of_logits, XACT_ERROR_LENGTH),
        (|c| c.args.dtype = 17, of_logits, XACT_ERROR_ENUM),
        (|c| c.args.label_type = 0, all, XACT_ERROR_ENUM),
        (|c| c.args.label_type = 6, all, XACT_ERROR_ENUM),
        (
            |c| c.args.label_type = XACT_ID_U8,
            all,
            XACT_ERROR_LABEL_TYPE,
        ),
        (|c| c.args.with_argmax = 2, &[PartialStats], XACT_ERROR_ENUM),
        (|c| c.decision.id_type = 0, all, XACT_ERROR_ENUM),
        (|c| c.decision.layout = 3, all, XACT_ERROR_ENUM),
        (
            |c| c.decision.layout = XACT_LAYOUT_CHUNKS,
            all,
            XACT_ERROR_LENGTH,
        ),
        (
            |c| {
                c.decision.layout = XACT_LAYOUT_CHUNKS;
                c.decision.cu_seqlens = c.inputs[1].ptr();
                (c.decision.cu_seqlens_len, c.decision.preceding_len) = (2, 1);
            },
            all,
            XACT_ERROR_NULL,
        ),
        (
            |c| c.decision.interleaved = u64::MAX,
            all,
            XACT_ERROR_LENGTH,
        ),
        (|c| c.decision.goldfish = ptr::null(), all, XACT_ERROR_NULL),
        (|c| c.decision.hash_ids = ptr::null(), all, XACT_ERROR_NULL),
        (
            |c| c.decision.hash_ids = odd(c.inputs[6].ptr()),
            all,
            XACT_ERROR_MISALIGNED,
        ),
        (|c| c.decision.row_len = 3, all, XACT_ERROR_LENGTH),
        (|c| c.decision.halo_len = 3, all, XACT_ERROR_NULL),
        (|c| c.decision.exempt_len = u64::MAX, all, XACT_ERROR_NULL),
        (|c| c.args.labels = ptr::null(), all, XACT_ERROR_NULL),
        (
            |c| c.args.labels = odd(c.inputs[1].ptr()),
            all,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.weights = odd(c.inputs[2].ptr()),
            all,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.logits.ptr = ptr::null_mut(),
            of_logits,
            XACT_ERROR_NULL,
        ),
        (
            |c| c.args.logits.ptr = odd(c.inputs[0].ptr()),
            of_logits,
            XACT_ERROR_MISALIGNED,
        ),
        (|c| c.args.logits.pitch = 5, of_logits, XACT_ERROR_PITCH),
        (|c| c.args.rows = u64::MAX, all, XACT_ERROR_TOO_LARGE),
        (|c| c.args.cols = 0, of_logits, XACT_ERROR_CLASSES),
        (
            |c| c.args.classes = 5,
            &[Backward, PartialStats],
            XACT_ERROR_CLASSES,
        ),
        (
            |c| c.args.first_class = 9,
            &[Backward, PartialStats],
            XACT_ERROR_CLASSES,
        ),
        (|_| (), &[Finish], XACT_ERROR_CLASSES),
        (
            |c| c.args.dlogits.ptr = ptr::null_mut(),
            backward,
            XACT_ERROR_NULL,
        ),
        (
            |c| c.args.dlogits.ptr = odd(c.outputs[0].ptr()),
            backward,
            XACT_ERROR_MISALIGNED,
        ),
        (|c| c.args.dlogits.pitch = 2, backward, XACT_ERROR_PITCH),
        (
            |c| c.args.dlogits.ptr = c.inputs[0].at(4),
            backward,
            XACT_ERROR_OVERLAP,
        ),
        (
            |c| c.args.dlogits.ptr = c.inputs[1].ptr(),
            backward,
            XACT_ERROR_OVERLAP,
        ),
        (
            |c| c.args.dloss = odd(c.inputs[3].ptr()),
            gradients,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.dloss_stride = i64::MAX,
            gradients,
            XACT_ERROR_TOO_LARGE,
        ),
        (
            |c| c.args.dloss_stride = i64::MIN,
            gradients,
            XACT_ERROR_TOO_LARGE,
        ),
        (
            |c| c.args.normalizer = odd(c.inputs[4].ptr()),
            losses,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.normalizer = odd(c.inputs[4].ptr()),
            backward,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.gathered = ptr::null(),
            of_gathered,
            XACT_ERROR_NULL,
        ),
        (
            |c| c.args.gathered = odd(c.inputs[5].ptr()),
            of_gathered,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.ranks = u64::MAX,
            of_gathered,
            XACT_ERROR_TOO_LARGE,
        ),
        (
            |c| c.args.saved = ptr::null_mut(),
            &[PartialStats],
            XACT_ERROR_NULL,
        ),
        (
            |c| c.args.saved = odd(c.args.saved),
            losses,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.loss = odd(c.args.loss),
            losses,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.z_loss = odd(c.args.z_loss),
            losses,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.lse = odd(c.args.lse),
            losses,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.argmax = odd(c.args.argmax),
            losses,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.summary = ptr::null_mut(),
            losses,
            XACT_ERROR_NULL,
        ),
        (
            |c| c.args.summary = odd(c.args.summary),
            losses,
            XACT_ERROR_MISALIGNED,
        ),
        (|c| c.args.loss = c.args.lse, losses, XACT_ERROR_OVERLAP),
        (
            |c| c.args.loss = c.inputs[2].ptr(),
            losses,
            XACT_ERROR_OVERLAP,
        ),
        (
            |c| c.args.loss = c.inputs[0].ptr(),
            &[Forward, WithGradient],
            XACT_ERROR_OVERLAP,
        ),
        (
            |c| c.args.summary = c.args.saved.cast(),
            losses,
            XACT_ERROR_OVERLAP,
        ),
        (
            |c| c.args.argmax = c.inputs[6].ptr(),
            losses,
            XACT_ERROR_OVERLAP,
        ),
    ];
    let of_device: &[Wrong<'_>] = &[
        (
            |c| c.args.workspace_bytes = 16,
            losses,
            XACT_ERROR_WORKSPACE,
        ),
        (
            |c| c.args.workspace = ptr::null_mut(),
            losses,
            XACT_ERROR_NULL,
        ),
        (
            |c| c.args.workspace = odd(c.args.workspace),
            losses,
            XACT_ERROR_MISALIGNED,
        ),
        (
            |c| c.args.workspace = c.args.labels.cast_mut(),
            losses,
            XACT_ERROR_OVERLAP,
        ),
        (|c| c.args.blocks = -7, all, XACT_ERROR_ENUM),
    ];
    on_both(|backend| {
        let of_device = if backend.is_host() { &[] } else { of_device };
        for (number, &(change, functions, status)) in wrong.iter().chain(of_device).enumerate() {
            for &function in functions {
                let mut call = Losses::new(backend, goldfish);
                let is_class_error = status == XACT_ERROR_CLASSES;
                if matches!(function, Finish) && !is_class_error {
                    call.op.vocab = COLS as u64;
                }
                let logits: Vec<u32> = call.inputs[0].get(ROWS * COLS);
                change(&mut call);
                let got = backend.loss(function, &call.op, &call.args);
                let said = last_error();
                let which = format!("{number} {function:?} host: {} {said}", backend.is_host());
                assert_eq!(got, status, "{which}");
                assert!(!said.is_empty());
                for output in &call.outputs {
                    assert_eq!(output.get::<f32>(ROOM / 4), [BEFORE; ROOM / 4], "{which}");
                }
                assert_eq!(call.inputs[0].get::<u32>(ROWS * COLS), logits);
            }
        }
        // The unchanged call succeeds.
        for function in [Forward, PartialStats, Backward, WithGradient] {
            let call = Losses::new(backend, goldfish);
            ok(backend.loss(function, &call.op, &call.args));
        }
    });
    ok(unsafe { xact_goldfish_free(goldfish) });
}

#[test]
fn masks_refuse_what_can_be_seen() {
    let strategy = xact_goldfish_strategy {
        kind: XACT_STRATEGY_HASH64,
        k: 4,
        h: 2,
        ..sized()
    };
    let goldfish = create(&strategy);
    on_both(|backend| {
        let ids = backend.put(&[5_i32, 6, 7, 8]);
        let [keep, weights, counts] = [(); 3].map(|()| backend.put(&[BEFORE; 8]));
        let workspace = backend.workspace(64);
        let offsets = backend.put(&[0_i32, 3, 2]);
        let mut decision = xact_decision {
            goldfish,
            hash_ids: ids.ptr(),
            id_type: XACT_ID_I32,
            ..sized()
        };
        let args = xact_goldfish_args {
            labels: 4,
            keep: keep.ptr(),
            weights: weights.ptr(),
            counts: counts.ptr(),
            workspace: workspace.ptr(),
            workspace_bytes: 64,
            ..sized()
        };
        let refuses = |args: xact_goldfish_args, status| {
            assert_eq!(backend.mask(&args), status, "{}", last_error());
            for output in [&keep, &weights, &counts] {
                assert_eq!(output.get::<f32>(8), [BEFORE; 8]);
            }
        };
        refuses(args, XACT_ERROR_NULL);
        let args = xact_goldfish_args {
            decision: &decision,
            ..args
        };
        refuses(
            xact_goldfish_args { size: 1, ..args },
            XACT_ERROR_STRUCT_SIZE,
        );
        let labels = u64::MAX;
        refuses(xact_goldfish_args { labels, ..args }, XACT_ERROR_TOO_LARGE);
        let wrong = odd(counts.ptr());
        refuses(
            xact_goldfish_args {
                counts: wrong,
                ..args
            },
            XACT_ERROR_MISALIGNED,
        );
        let wrong = odd(weights.ptr());
        refuses(
            xact_goldfish_args {
                weights: wrong,
                ..args
            },
            XACT_ERROR_MISALIGNED,
        );
        let wrong = weights.at(8).cast();
        refuses(
            xact_goldfish_args {
                keep: wrong,
                ..args
            },
            XACT_ERROR_OVERLAP,
        );
        let wrong = ids.ptr();
        refuses(
            xact_goldfish_args {
                keep: wrong,
                ..args
            },
            XACT_ERROR_OVERLAP,
        );
        if backend.is_host() {
            // On a device, the host does not read the offsets.
            decision.layout = XACT_LAYOUT_DOCUMENTS;
            decision.cu_seqlens = offsets.ptr();
            decision.cu_seqlens_len = 3;
            let decision: *const xact_decision = &decision;
            refuses(xact_goldfish_args { decision, ..args }, XACT_ERROR_OFFSETS);
        } else {
            let workspace_bytes = 0;
            refuses(
                xact_goldfish_args {
                    workspace_bytes,
                    ..args
                },
                XACT_ERROR_WORKSPACE,
            );
            refuses(xact_goldfish_args { blocks: -9, ..args }, XACT_ERROR_ENUM);
            let blocks = i64::MAX;
            refuses(xact_goldfish_args { blocks, ..args }, XACT_ERROR_ENUM);
        }
    });
    unsafe {
        let mut count = 0;
        let status = xact_goldfish_bitmap(goldfish, ptr::null_mut(), &mut count);
        assert_eq!(status, XACT_ERROR_NULL);
        let mut words = ptr::null();
        let status = xact_goldfish_bitmap(goldfish, &mut words, ptr::null_mut());
        assert_eq!(status, XACT_ERROR_NULL);
        let status = xact_goldfish_window(ptr::null(), &mut count);
        assert_eq!(status, XACT_ERROR_NULL);
        let status = xact_goldfish_create(&strategy, ptr::null_mut());
        assert_eq!(status, XACT_ERROR_NULL);
        ok(xact_goldfish_free(goldfish));
    }
}

#[test]
fn a_panic_is_a_status() {
    let status = guard(|| panic!("on purpose: {}", 7));
    assert_eq!(status, XACT_ERROR_PANIC);
    assert_eq!(last_error(), "a bug in xact: on purpose: 7");
    let status = guard(|| std::panic::panic_any(5_u8));
    assert_eq!(status, XACT_ERROR_PANIC);
    assert_eq!(last_error(), "a bug in xact: a panic");
    // The text stays until the next error, and another thread has its own.
    assert_eq!(guard(|| Ok(())), XACT_OK);
    assert_eq!(last_error(), "a bug in xact: a panic");
    let elsewhere = std::thread::spawn(last_error).join().unwrap();
    assert_eq!(elsewhere, "");
    let status = guard(|| Err(Failure::new(XACT_ERROR_OTHER, "with a \0 in it")));
    assert_eq!(status, XACT_ERROR_OTHER);
    assert_eq!(last_error(), "with a \u{fffd} in it");
}
