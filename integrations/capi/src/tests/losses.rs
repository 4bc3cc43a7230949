//! The loss in every type and over ranks, compared with the f64 reference.

use xact::half::{bf16, f16};
use xact::{CrossEntropy, Element};

use super::*;

const ROWS: usize = 9;
const COLS: usize = 70;
/// The number of columns that are classes.
const VOCAB: usize = 67;

const LABELS: [i64; ROWS] = [3, 66, -100, 0, 12, 5, 40, 33, 2];
const WEIGHTS: [f32; ROWS] = [1.0, 0.5, 1.0, 2.0, 0.0, 1.0, 1.5, 1.0, 0.25];

fn op() -> (xact_cross_entropy, CrossEntropy) {
    let op = xact_cross_entropy {
        label_smoothing: 0.1,
        z_loss: 1e-3,
        softcap: 30.0,
        vocab: VOCAB as u64,
        ..cross_entropy()
    };
    let reference = CrossEntropy::default()
        .label_smoothing(0.1)
        .z_loss(1e-3)
        .softcap(30.0)
        .vocab(VOCAB as u64);
    (op, reference)
}

/// The buffers of a call, and the structs that point to them.
struct Call<T> {
    backend_args: xact_cross_entropy_args,
    buffers: Vec<Buffer>,
    logits: Buffer,
    dlogits: Buffer,
    loss: Buffer,
    saved: Buffer,
    summary: Buffer,
    argmax: Buffer,
    values: Vec<T>,
}

fn call<T: Element>(backend: &Backend) -> Call<T> {
    let values: Vec<T> = elements(noise(ROWS * COLS, 5).iter().map(|v| v * 8.0));
    let logits = backend.put(&values);
    let dlogits = backend.put(&elements::<T>(vec![77.0; ROWS * COLS]));
    let (labels, weights) = (backend.put(&LABELS), backend.put(&WEIGHTS));
    let loss = backend.put(&[77.0_f32; ROWS]);
    let argmax = backend.put(&[77_i32; ROWS]);
    let mut saved_bytes = 0;
    ok(unsafe { xact_cross_entropy_saved_bytes(&op().0, ROWS as u64, &mut saved_bytes) });
    let saved = backend.workspace(saved_bytes);
    let summary = backend.workspace(size_of::<xact_cross_entropy_summary>() as u64);
    let mut bytes = 8;
    if !backend.is_host() {
        ok(unsafe { xact_cross_entropy_workspace_bytes(ROWS as u64, &mut bytes) });
    }
    let workspace = backend.workspace(bytes);
    let mut args = xact_cross_entropy_args {
        rows: ROWS as u64,
        cols: COLS as u64,
        dtype: number(T::DTYPE),
        label_type: XACT_ID_I64,
        labels: labels.ptr(),
        weights: weights.ptr(),
        loss: loss.ptr(),
        argmax: argmax.ptr(),
        saved: saved.ptr(),
        gathered: saved.ptr(),
        summary: summary.ptr(),
        workspace: workspace.ptr(),
        workspace_bytes: bytes,
        ..sized()
    };
    args.logits.ptr = logits.ptr();
    args.dlogits.ptr = dlogits.ptr();
    Call {
        backend_args: args,
        buffers: vec![labels, weights, workspace],
        logits,
        dlogits,
        loss,
        saved,
        summary,
        argmax,
        values,
    }
}

/// Fails unless the gradient is within the rounding error of the exact one.
fn check_gradient<T: Element>(got: T, exact: f64, bound: f64) {
    let (low, high) = (T::from_f64(exact - bound), T::from_f64(exact + bound));
    let inside = (low.to_f64()..=high.to_f64()).contains(&got.to_f64());
    assert!(inside, "{} for {exact} ± {bound}", got.to_f64());
}

fn check<T: Element>(values: &[T], losses: &[f32], gradients: &[T], divisor: f64, dloss: f64) {
    let (_, reference) = op();
    for row in 0..ROWS {
        let logits = &values[row * COLS..][..VOCAB];
        let got = &gradients[row * COLS..][..COLS];
        if LABELS[row] < 0 || WEIGHTS[row] == 0.0 {
            assert_eq!(losses[row], 0.0);
            assert!(got.iter().all(|g| g.to_f64() == 0.0));
            continue;
        }
        let weight = f64::from(WEIGHTS[row]);
        let logits: Vec<f64> = logits.iter().map(|z| z.to_f64()).collect();
        let target = LABELS[row] as usize;
        let exact = reference.evaluate(&logits, target, weight, dloss / divisor);
        let error = (f64::from(losses[row]) - exact.loss).abs();
        assert!(error <= exact.loss_bound, "row {row}: {error}");
        for (column, &got) in got.iter().enumerate() {
            match exact.dlogits.get(column) {
                Some(&gradient) => {
                    check_gradient(got, gradient, exact.dlogits_bound[column]);
                }
                None => assert_eq!(got.to_f64(), 0.0, "no class"),
            }
        }
    }
}

fn every_call<T: Element + PartialEq>(backend: &Backend) {
    let (op, _) = op();
    // The forward, and the backward from its `saved` bytes.
    let call = call::<T>(backend);
    let mut args = call.backend_args;
    ok(backend.loss(Loss::Forward, &op, &args));
    let summary = call.summary.get::<xact_cross_entropy_summary>(1)[0];
    assert_eq!((summary.labels, summary.kept, summary.dropped), (8, 7, 0));
    assert_eq!((summary.bad_row, summary.nan_row), (u64::MAX, u64::MAX));
    let normalizer = backend.put(&[summary.normalizer]);
    let dloss = backend.put(&[0.5_f32; ROWS * 3]);
    args.normalizer = normalizer.ptr();
    args.dloss = dloss.ptr();
    args.dloss_stride = 3;
    ok(backend.loss(Loss::Backward, &op, &args));
    let losses: Vec<f32> = call.loss.get(ROWS);
    let gradients: Vec<T> = call.dlogits.get(ROWS * COLS);
    let divisor = f64::from(summary.normalizer);
    check(&call.values, &losses, &gradients, divisor, 0.5);
    // The gradients overwrite the logits, and the stride of `dloss` is negative.
    args.dlogits = args.logits;
    args.dloss = dloss.at(4 * 3 * (ROWS - 1)).cast();
    args.dloss_stride = -3;
    ok(backend.loss(Loss::Backward, &op, &args));
    assert_eq!(call.logits.get::<T>(ROWS * COLS), gradients);
    drop(call);

    // Forward and gradient in one call.
    let call = self::call::<T>(backend);
    let mut args = call.backend_args;
    args.dloss = dloss.ptr();
    ok(backend.loss(Loss::WithGradient, &op, &args));
    let losses: Vec<f32> = call.loss.get(ROWS);
    let gradients: Vec<T> = call.logits.get(ROWS * COLS);
    check(&call.values, &losses, &gradients, divisor, 0.5);
    assert!(!call.buffers.is_empty() && !call.saved.ptr::<u8>().is_null());
}

#[test]
fn every_call_and_type_is_the_reference() {
    on_both(|backend| {
        every_call::<f32>(backend);
        every_call::<f16>(backend);
        every_call::<bf16>(backend);
    });
}

#[test]
fn labels_of_any_type_are_the_same() {
    on_both(|backend| {
        let (op, _) = op();
        let call = call::<f32>(backend);
        let mut args = call.backend_args;
        ok(backend.loss(Loss::Forward, &op, &args));
        let expected: Vec<f32> = call.loss.get(ROWS);
        let narrow = backend.put(&LABELS.map(|label| label as i32));
        args.labels = narrow.ptr();
        args.label_type = XACT_ID_I32;
        ok(backend.loss(Loss::Forward, &op, &args));
        assert_eq!(call.loss.get::<f32>(ROWS), expected);
        // No u32 label is -100, so the summary reports a bad row.
        args.label_type = XACT_ID_U32;
        ok(backend.loss(Loss::Forward, &op, &args));
        let summary = call.summary.get::<xact_cross_entropy_summary>(1)[0];
        assert_eq!(summary.bad_row, 2);
        args.label_type = XACT_ID_U16;
        let status = backend.loss(Loss::Forward, &op, &args);
        assert_eq!(status, XACT_ERROR_LABEL_TYPE);
    });
}

/// The columns are spread over two ranks. Both finish from the gathered stats.
#[test]
fn columns_of_two_ranks_are_those_of_one() {
    const FIRST: usize = 30;
    on_both(|backend| {
        let (mut op, _) = op();
        let whole = call::<f32>(backend);
        let args = whole.backend_args;
        ok(backend.loss(Loss::Forward, &op, &args));
        ok(backend.loss(Loss::Backward, &op, &args));
        let losses: Vec<f32> = whole.loss.get(ROWS);
        let gradients: Vec<f32> = whole.dlogits.get(ROWS * COLS);
        let argmax: Vec<i32> = whole.argmax.get(ROWS);

        let rank = |first: usize, vocab: usize| {
            let mut of_rank = args;
            of_rank.logits.ptr = whole.logits.at(4 * first);
            of_rank.logits.pitch = COLS as u64;
            of_rank.cols = vocab as u64;
            of_rank.first_class = first as u64;
            of_rank.classes = VOCAB as u64;
            of_rank.with_argmax = 1;
            of_rank
        };
        let saved_bytes = ROWS * size_of::<xact::RowStats>();
        let gathered = backend.workspace(2 * saved_bytes as u64);
        let ranks = [(0, FIRST), (FIRST, VOCAB - FIRST)];
        for (number, (first, vocab)) in ranks.into_iter().enumerate() {
            let mut of_rank = rank(first, vocab);
            of_rank.saved = gathered.at(number * saved_bytes);
            op.vocab = vocab as u64;
            ok(backend.loss(Loss::PartialStats, &op, &of_rank));
        }
        let mut all = rank(0, FIRST);
        all.gathered = gathered.ptr();
        all.ranks = 2;
        op.vocab = FIRST as u64;
        ok(backend.loss(Loss::Finish, &op, &all));
        for (got, expected) in whole.loss.get::<f32>(ROWS).iter().zip(losses) {
            assert!((got - expected).abs() <= 4e-6 * expected.abs());
        }
        assert_eq!(whole.argmax.get::<i32>(ROWS), argmax);
        // Each rank computes the gradients of its columns.
        let mut args = all;
        for (first, vocab) in ranks {
            let of_rank = rank(first, vocab);
            args.logits = of_rank.logits;
            args.cols = of_rank.cols;
            args.first_class = of_rank.first_class;
            args.dlogits = of_rank.logits;
            args.dlogits.ptr = whole.dlogits.at(4 * first);
            op.vocab = vocab as u64;
            ok(backend.loss(Loss::Backward, &op, &args));
        }
        let found: Vec<f32> = whole.dlogits.get(ROWS * COLS);
        for (got, expected) in found.iter().zip(gradients) {
            let error = (got - expected).abs();
            assert!(
                error <= 1e-5 * expected.abs() + 1e-9,
                "{got} for {expected}"
            );
        }
    });
}

/// `logits[:, :-1]` of `[B, S, V]`, with the gradients in the gaps of the logits or in other memory.
#[test]
fn rows_may_come_in_groups() {
    const GROUP: u64 = 3;
    const GROUPS: u64 = 3;
    on_both(|backend| {
        let (op, _) = op();
        let call = call::<f32>(backend);
        let mut args = call.backend_args;
        ok(backend.loss(Loss::Forward, &op, &args));
        let expected: Vec<f32> = call.loss.get(ROWS);
        ok(backend.loss(Loss::Backward, &op, &args));
        let gradients: Vec<f32> = call.dlogits.get(ROWS * COLS);
        let group = (GROUP as usize + 1) * COLS;
        let mut spread = vec![f32::NAN; GROUPS as usize * group];
        for (number, rows) in call.values.chunks(GROUP as usize * COLS).enumerate() {
            spread[number * group..][..rows.len()].copy_from_slice(rows);
        }
        let spread = backend.put(&spread);
        args.logits = xact_logits_matrix {
            ptr: spread.ptr(),
            pitch: 0,
            group_rows: GROUP,
            group_pitch: group as u64,
        };
        ok(backend.loss(Loss::Forward, &op, &args));
        assert_eq!(call.loss.get::<f32>(ROWS), expected);
        ok(backend.loss(Loss::Backward, &op, &args));
        assert_eq!(call.dlogits.get::<f32>(ROWS * COLS), gradients);
        args.dlogits = args.logits;
        ok(backend.loss(Loss::Backward, &op, &args));
        let all: Vec<f32> = spread.get(GROUPS as usize * group);
        let rows = all.chunks(group).flat_map(|g| &g[..GROUP as usize * COLS]);
        assert_eq!(rows.copied().collect::<Vec<_>>(), gradients);
        assert!(
            all.chunks(group)
                .all(|g| g[GROUP as usize * COLS..].iter().all(|v| v.is_nan()))
        );
        args.logits.group_rows = 2;
        assert_eq!(backend.loss(Loss::Forward, &op, &args), XACT_ERROR_LENGTH);
        args.logits.group_rows = 3;
        args.logits.group_pitch = 3 * COLS as u64 - 1;
        assert_eq!(
            backend.loss(Loss::Forward, &op, &args),
            XACT_ERROR_GROUP_PITCH
        );
    });
}

/// The rows of logits and gradients alternate in one matrix.
#[test]
fn gradients_may_lie_between_the_logits() {
    on_both(|backend| {
        let (op, _) = op();
        let call = call::<f32>(backend);
        let mut args = call.backend_args;
        ok(backend.loss(Loss::Forward, &op, &args));
        ok(backend.loss(Loss::Backward, &op, &args));
        let gradients: Vec<f32> = call.dlogits.get(ROWS * COLS);
        let rows = call.values.chunks(COLS);
        let both: Vec<f32> = rows.flat_map(|row| [row, &[0.0; COLS]].concat()).collect();
        let both = backend.put(&both);
        args.logits.ptr = both.ptr();
        args.logits.pitch = 2 * COLS as u64;
        args.dlogits.ptr = both.at(4 * COLS);
        args.dlogits.pitch = 2 * COLS as u64;
        ok(backend.loss(Loss::Backward, &op, &args));
        let all: Vec<f32> = both.get(2 * ROWS * COLS);
        let found = all.chunks(2 * COLS).flat_map(|row| &row[COLS..]);
        assert_eq!(found.copied().collect::<Vec<_>>(), gradients);
    });
}

#[test]
fn no_rows_are_a_summary_of_nothing() {
    on_both(|backend| {
        let call = call::<f32>(backend);
        for empty_is_nan in [0, 1] {
            let op = xact_cross_entropy {
                empty_is_nan,
                ..cross_entropy()
            };
            let args = xact_cross_entropy_args {
                dtype: XACT_DTYPE_F32,
                label_type: XACT_ID_I32,
                summary: call.summary.ptr(),
                workspace: call.backend_args.workspace,
                workspace_bytes: call.backend_args.workspace_bytes,
                ..sized()
            };
            ok(backend.loss(Loss::Forward, &op, &args));
            let summary = call.summary.get::<xact_cross_entropy_summary>(1)[0];
            assert_eq!(summary.mean.is_nan(), empty_is_nan == 1);
            assert_eq!((summary.loss, summary.kept), (0.0, 0));
        }
    });
}
