//! The head in every type, compared with `xact::cpu` and the f64 reference; lists of kept rows; refusals.

use xact::half::{bf16, f16};
use xact::loss::linear_cross_entropy::Target;
use xact::{CrossEntropy, Element, LinearCrossEntropy};

use super::*;

const ROWS: usize = 9;
const H: usize = 12;
/// The rows of the weights, of which the first VOCAB are classes.
const V: usize = 24;
const VOCAB: usize = 21;

const LABELS: [i64; ROWS] = [3, 20, -100, 0, 12, 5, 7, 11, 2];
const WEIGHTS: [f32; ROWS] = [1.0, 0.5, 1.0, 2.0, 0.0, 1.0, 1.5, 1.0, 0.25];
/// The rows that are kept: label and weight.
const KEPT: [usize; 7] = [0, 1, 3, 5, 6, 7, 8];

/// The tensors of a call in the caller's memory.
struct Call<T, D> {
    hidden: Vec<T>,
    weight: Vec<T>,
    d_hidden: Vec<T>,
    d_weight: Vec<D>,
    loss: [f32; ROWS],
    saved: Vec<u32>,
    summary: xact_cross_entropy_summary,
}

impl<T: Element, D: Element> Call<T, D> {
    fn new() -> Self {
        Call {
            hidden: elements(noise(ROWS * H, 1)),
            weight: elements(noise(V * H, 2)),
            d_hidden: elements(vec![7.0; ROWS * H]),
            d_weight: elements(vec![7.0; V * H]),
            loss: [7.0; ROWS],
            saved: vec![7; 5 * ROWS],
            summary: unsafe { std::mem::zeroed() },
        }
    }

    fn loss(&mut self) -> xact_cross_entropy_args {
        xact_cross_entropy_args {
            rows: ROWS as u64,
            cols: V as u64,
            dtype: number(T::DTYPE),
            label_type: XACT_ID_I64,
            labels: LABELS.as_ptr().cast(),
            weights: WEIGHTS.as_ptr(),
            loss: self.loss.as_mut_ptr(),
            saved: self.saved.as_mut_ptr().cast(),
            gathered: self.saved.as_ptr().cast(),
            summary: &mut self.summary,
            ..sized()
        }
    }

    fn head(&mut self, loss: &xact_cross_entropy_args) -> xact_linear_cross_entropy_args {
        let mut args = xact_linear_cross_entropy_args {
            loss,
            hidden_cols: H as u64,
            d_weight_dtype: number(D::DTYPE),
            // A 16-bit gradient of the weights is rounded once for each chunk.
            chunk_rows: if D::ULP_EXPONENT == -23 { 4 } else { 0 },
            ..sized()
        };
        args.hidden.ptr = self.hidden.as_mut_ptr().cast();
        args.weight.ptr = self.weight.as_mut_ptr().cast();
        args.d_hidden.ptr = self.d_hidden.as_mut_ptr().cast();
        args.d_weight.ptr = self.d_weight.as_mut_ptr().cast();
        args
    }
}

fn op() -> xact_cross_entropy {
    xact_cross_entropy {
        z_loss: 1e-3,
        vocab: VOCAB as u64,
        ..cross_entropy()
    }
}

/// Fails unless the results are within the bounds of the reference.
fn check<T: Element, D: Element>(call: &Call<T, D>, before: f64) {
    let reference = LinearCrossEntropy::new(CrossEntropy::default().z_loss(1e-3));
    let target = |row: usize| {
        let weight = f64::from(WEIGHTS[row]);
        KEPT.contains(&row)
            .then(|| Target::new(LABELS[row] as usize, weight, 0.5 / KEPT.len() as f64))
    };
    let targets: Vec<_> = (0..ROWS).map(target).collect();
    let weight = &call.weight[..VOCAB * H];
    let exact = reference.evaluate(&call.hidden, weight, H, &targets);
    let inside = |got: f64, exact: f64, bound: f64, round: fn(f64) -> f64| {
        (round(exact - bound)..=round(exact + bound)).contains(&got)
    };
    for (row, exact) in exact.rows.iter().enumerate() {
        let (loss, bound) = exact
            .as_ref()
            .map_or((0.0, 0.0), |exact| (exact.loss, exact.loss_bound));
        assert!(inside(call.loss[row].into(), loss, bound, |v| v), "{row}");
    }
    let round: fn(f64) -> f64 = |v| T::from_f64(v).to_f64();
    for (i, got) in call.d_hidden.iter().enumerate() {
        let (exact, bound) = (exact.d_hidden[i], exact.d_hidden_bound[i]);
        assert!(inside(got.to_f64(), exact, bound, round), "d_hidden[{i}]");
    }
    for (i, got) in call.d_weight.iter().enumerate() {
        if i >= VOCAB * H {
            // Padding is 0, or what it was.
            assert_eq!(got.to_f64(), before);
            continue;
        }
        let (exact, bound) = (exact.d_weight[i] + before, exact.d_weight_bound[i]);
        // The sums start from what was there.
        let bound = bound + 4.0 * before * 2f64.powi(-23);
        let round: fn(f64) -> f64 = |v| D::from_f64(v).to_f64();
        assert!(inside(got.to_f64(), exact, bound, round), "d_weight[{i}]");
    }
}

fn every_call<T: Element, D: Element>() {
    let op = op();
    let dloss = [0.5_f32];
    let list: Vec<i32> = [-1].into_iter().chain(KEPT.map(|row| row as i32)).collect();
    for listed in [false, true] {
        for accumulate in [0, 1] {
            let mut call = Call::<T, D>::new();
            let mut loss = call.loss();
            loss.dloss = dloss.as_ptr();
            let mut args = call.head(&loss);
            args.accumulate = accumulate;
            if listed {
                (args.kept_rows, args.kept_count) = (list.as_ptr(), list.len() as u64);
            }
            let before = if accumulate == 1 { 7.0 } else { 0.0 };
            ok(unsafe { xact_linear_cross_entropy_forward_with_gradient_host(&op, &args) });
            check(&call, before);
            let first = (call.summary, call.saved.clone());

            // The forward writes no gradients; the backward writes the same.
            let mut call = Call::<T, D>::new();
            let mut loss = call.loss();
            let mut args = call.head(&loss);
            ok(unsafe { xact_linear_cross_entropy_forward_host(&op, &args) });
            assert!(call.d_weight.iter().all(|d| d.to_f64() == 7.0));
            assert_eq!((call.summary, &call.saved), (first.0, &first.1));
            let normalizer = [call.summary.normalizer];
            (loss.normalizer, loss.dloss) = (normalizer.as_ptr(), dloss.as_ptr());
            args.loss = &loss;
            args.accumulate = accumulate;
            ok(unsafe { xact_linear_cross_entropy_backward_host(&op, &args) });
            check(&call, before);
        }
    }
}

#[test]
fn every_type() {
    every_call::<f32, f32>();
    every_call::<f16, f32>();
    every_call::<f16, f16>();
    every_call::<bf16, f32>();
    every_call::<bf16, bf16>();
}

#[test]
fn ranks_of_the_head() {
    const FIRST: usize = 8;
    let mut whole = Call::<f32, f32>::new();
    let loss = whole.loss();
    let args = whole.head(&loss);
    ok(unsafe { xact_linear_cross_entropy_forward_host(&op(), &args) });
    let mut gathered: Vec<u32> = Vec::new();
    for (first, classes) in [(0, FIRST), (FIRST, VOCAB - FIRST)] {
        let mut rank = Call::<f32, f32>::new();
        let mut loss = rank.loss();
        (loss.first_class, loss.classes) = (first as u64, VOCAB as u64);
        loss.cols = classes as u64;
        let mut args = rank.head(&loss);
        args.weight.ptr = rank.weight[first * H..].as_mut_ptr().cast();
        let op = xact_cross_entropy { vocab: 0, ..op() };
        ok(unsafe { xact_linear_cross_entropy_partial_stats_host(&op, &args) });
        gathered.extend(&rank.saved);
    }
    let mut call = Call::<f32, f32>::new();
    let mut loss = call.loss();
    (loss.classes, loss.ranks) = (VOCAB as u64, 2);
    loss.gathered = gathered.as_ptr().cast();
    ok(unsafe { xact_cross_entropy_finish_host(&op(), &loss) });
    for (got, want) in call.loss.iter().zip(whole.loss) {
        assert!((got - want).abs() < 1e-5);
    }
}

#[test]
fn lists_of_kept_rows() {
    let mut call = Call::<f32, f32>::new();
    let loss = call.loss();
    let (mut rows, mut count) = ([7; ROWS], 0);
    ok(unsafe { xact_kept_rows_host(&op(), &loss, rows.as_mut_ptr(), &mut count) });
    assert_eq!(count as usize, KEPT.len());
    assert_eq!(rows[..KEPT.len()], KEPT.map(|row| row as i32));
    assert_eq!(rows[KEPT.len()..], [7; 2]);
    let status = unsafe { xact_kept_rows_host(&op(), &loss, ptr::null_mut(), ptr::null_mut()) };
    assert_eq!(status, XACT_ERROR_NULL);
}

/// Nothing is written when a call is refused.
#[test]
fn refusals_of_the_head() {
    let twice = [1, 1];
    let refused = |change: &dyn Fn(&mut xact_linear_cross_entropy_args)| {
        let mut call = Call::<f32, f32>::new();
        let loss = call.loss();
        let mut args = call.head(&loss);
        change(&mut args);
        let call_of_c = xact_linear_cross_entropy_forward_with_gradient_host;
        let status = unsafe { call_of_c(&op(), &args) };
        assert!(
            call.d_hidden
                .iter()
                .chain(&call.d_weight)
                .all(|&d| d == 7.0)
        );
        assert!(call.loss == [7.0; ROWS] && call.saved.iter().all(|&word| word == 7));
        status
    };
    type Args = xact_linear_cross_entropy_args;
    let overlap = |args: &mut Args| args.d_hidden.ptr = args.hidden.ptr;
    assert_eq!(refused(&overlap), XACT_ERROR_OVERLAP);
    let inside = |args: &mut Args| args.d_weight.ptr = args.weight.ptr.wrapping_add(4);
    assert_eq!(refused(&inside), XACT_ERROR_OVERLAP);
    // Outputs whose rows lie in each other's gaps.
    let woven = |args: &mut Args| {
        args.d_hidden.ptr = args.d_weight.ptr.wrapping_add(4 * H / 2);
    };
    assert_eq!(refused(&woven), XACT_ERROR_OVERLAP);
    let null = |args: &mut Args| args.hidden.ptr = ptr::null_mut();
    assert_eq!(refused(&null), XACT_ERROR_NULL);
    assert_eq!(refused(&|args| args.loss = ptr::null()), XACT_ERROR_NULL);
    assert_eq!(refused(&|args| args.weight.pitch = 3), XACT_ERROR_PITCH);
    assert_eq!(refused(&|args| args.logits = 9), XACT_ERROR_ENUM);
    assert_eq!(refused(&|args| args.accumulate = 2), XACT_ERROR_ENUM);
    let other = |args: &mut Args| args.d_weight_dtype = XACT_DTYPE_F16;
    assert_eq!(refused(&other), XACT_ERROR_PARAM_DTYPE);
    assert_eq!(refused(&|args| args.max_bytes = 100), XACT_ERROR_BUDGET);
    let list = |args: &mut Args| (args.kept_rows, args.kept_count) = (twice.as_ptr(), 2);
    assert_eq!(refused(&list), XACT_ERROR_KEPT_ROW);
    assert_eq!(refused(&|args| args.size = 12), XACT_ERROR_STRUCT_SIZE);
}
