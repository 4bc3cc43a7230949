//! Options and batches that every backend must compute correctly.

use std::ops::Range;

use proptest::prelude::*;
use xact::{CrossEntropy, Element, Normalizer};

use super::inputs::Random;
use super::loss_check::{Batch, Results, check, expected};
use super::{goldfish_golden, loss_golden};

/// The options of the accuracy table, by name.
pub fn options() -> [(&'static str, CrossEntropy); 5] {
    let plain = CrossEntropy::default();
    let smoothing = plain.label_smoothing(0.1);
    let z_loss = plain.z_loss(1e-3);
    let softcap = plain.softcap(30.0);
    [
        ("plain", plain),
        ("smoothing", smoothing),
        ("z_loss", z_loss),
        ("softcap", softcap),
        ("all", everything()),
    ]
}

/// Three sets of options, by name, which together cover all options of the formula and all normalizers but the caller's.
pub fn few_options() -> [(&'static str, CrossEntropy); 3] {
    let plain = CrossEntropy::default();
    let smoothed = plain
        .label_smoothing(0.1)
        .z_loss(1e-3)
        .normalizer(Normalizer::Weight);
    let capped = plain.softcap(15.0).normalizer(Normalizer::None);
    [("plain", plain), ("smoothed", smoothed), ("capped", capped)]
}

/// All options that change the formula.
pub fn everything() -> CrossEntropy {
    CrossEntropy::default()
        .label_smoothing(0.1)
        .z_loss(1e-4)
        .softcap(15.0)
        .normalizer(Normalizer::Weight)
}

/// Approximately normal numbers of deviation `scale`.
pub fn noise(random: &mut Random, len: usize, scale: f64) -> Vec<f64> {
    let values = random.normal::<f32>(len, scale);
    values.into_iter().map(f64::from).collect()
}

/// Logits of deviation `scale`, and labels that are classes. From row to row, the target becomes more probable.
pub fn batch<T: Element>(
    seed: u64,
    rows: usize,
    cols: usize,
    classes: usize,
    scale: f64,
) -> Batch<T> {
    let mut random = Random(seed);
    let mut logits = noise(&mut random, rows * cols, scale);
    let labels: Vec<_> = (0..rows)
        .map(|_| (random.bits() % classes as u64) as i64)
        .collect();
    for (r, &label) in labels.iter().enumerate() {
        logits[r * cols + label as usize] += 3.0 * (r % 8) as f64;
    }
    let logits = logits.into_iter().map(T::from_f64).collect();
    Batch::new(logits, cols, labels)
}

/// A batch of any shape with any options, described by a few numbers.
#[derive(Clone, Debug)]
pub struct AnyCall {
    /// The options.
    pub op: CrossEntropy,
    rows: usize,
    classes: usize,
    /// The number of columns that are no classes.
    padding: usize,
    /// The number of elements between the rows of the logits, and the stride of the upstream gradients.
    scale: f64,
    stride: i64,
    weighted: bool,
    upstream: bool,
    masked: bool,
    /// Whether the gradients are divided by a number of the call.
    external: bool,
    seed: u64,
}

/// A random case with rows of fewer than `cols` classes, and one of the strides of upstream gradients.
pub fn any_call(cols: usize, strides: Range<i64>) -> impl Strategy<Value = AnyCall> {
    let shape = (1..9usize, prop_oneof![1..40usize, 1..cols], 0..9usize);
    let op = (
        prop_oneof![Just(0.0f32), 0.0f32..0.99],
        prop_oneof![Just(0.0f32), 0.0f32..0.1],
        prop::option::of(0.5f32..60.0),
        0..5usize,
    );
    let scale = prop_oneof![Just(0.0), 0.01..30.0f64];
    let batch = (scale, strides, any::<[bool; 3]>(), any::<u64>());
    (shape, op, batch).prop_map(|(shape, op, batch)| {
        let (rows, classes, padding) = shape;
        let (label_smoothing, z_loss, softcap, normalizer) = op;
        let (scale, stride, [weighted, upstream, masked], seed) = batch;
        let normalizers = [
            Normalizer::None,
            Normalizer::Kept,
            Normalizer::Labels,
            Normalizer::Weight,
        ];
        let external = normalizer == normalizers.len();
        let mut op = CrossEntropy::default()
            .label_smoothing(label_smoothing)
            .z_loss(z_loss)
            .normalizer(normalizers[normalizer % normalizers.len()]);
        op.softcap = softcap;
        op.vocab = (padding > 0).then_some(classes as u64);
        // The only row counts as the first one.
        let stride = if rows > 1 { stride } else { stride.abs() };
        AnyCall {
            op,
            rows,
            classes,
            padding,
            scale,
            stride,
            weighted,
            upstream,
            masked,
            external,
            seed,
        }
    })
}

impl AnyCall {
    /// The batch.
    pub fn batch<T: Element>(&self) -> Batch<T> {
        let cols = self.classes + self.padding;
        let mut batch = batch::<T>(self.seed, self.rows, cols, self.classes, self.scale);
        let mut random = Random(self.seed ^ 1);
        batch.weights = self.weighted.then(|| random.normal(self.rows, 1.0));
        let length = self.stride.unsigned_abs() as usize * (self.rows - 1) + 1;
        let dloss = self.upstream.then(|| random.normal(length, 1.0));
        batch.dloss = dloss.map(|values| (values, self.stride));
        batch.normalizer = self.external.then_some(3.5);
        if self.masked {
            batch.labels[self.rows / 2] = self.op.ignore_index;
        }
        batch
    }
}

/// −inf, +inf and NaN among the logits, rows of only −inf, and one-hot rows; and caps of any size for them.
pub fn special_rows<T: Element>() -> (Batch<T>, [CrossEntropy; 5]) {
    const COLS: usize = 2100;
    let ninf = f64::NEG_INFINITY;
    let set = |values: &[(usize, f64)]| {
        let mut row = noise(&mut Random(9), COLS, 2.0);
        for &(at, value) in values {
            row[at] = value;
        }
        row
    };
    let range = |from: usize, to: usize, value: f64| {
        let mut row = noise(&mut Random(10), COLS, 2.0);
        row[from..to].fill(value);
        row
    };
    let one_hot = |value: f64| {
        let mut row = vec![ninf; COLS];
        row[1] = value;
        row
    };
    let rows = [
        set(&[(5, ninf), (2000, ninf)]),
        set(&[(1, ninf)]),
        range(0, COLS, ninf),
        one_hot(3.0),
        one_hot(-60000.0),
        range(2, COLS, ninf),
        range(0, COLS - 1, ninf),
        range(0, 2048, ninf),
        range(2, 2060, ninf),
        set(&[(7, f64::NAN)]),
        set(&[(1, f64::NAN)]),
        range(0, COLS, f64::NAN),
        range(0, COLS - 1, f64::NAN),
        set(&[(0, f64::NAN), (COLS - 1, ninf)]),
        set(&[(3, f64::INFINITY)]),
        set(&[(1, f64::INFINITY)]),
        set(&[(3, f64::INFINITY), (4, ninf)]),
        range(0, COLS, 0.0),
        range(0, COLS, -0.0),
        range(0, COLS, 60000.0),
        set(&[(1, 1000.0)]),
        set(&[(2, 1000.0)]),
        set(&[(1, 1e38)]),
        set(&[(2, -1e38)]),
        // The sum of the logits is still in the range of f32.
        range(0, COLS, 1e35),
        one_hot(f64::from(f32::MAX)),
        set(&[(1, f64::from(f32::MAX)), (2, f64::from(f32::MIN))]),
    ];
    let logits = rows.concat().into_iter().map(T::from_f64).collect();
    let batch = Batch::<T>::new(logits, COLS, vec![1; rows.len()]);
    let caps = [1e-37, 0.5, 1e4, 1e30, 2e38].map(|cap| CrossEntropy::default().softcap(cap));
    (batch, caps)
}

/// Panics unless `run` computes the results of PyTorch.
pub fn check_golden<T: Element>(
    run: impl Fn(&CrossEntropy, &Batch<T>) -> Result<Results<T>, String>,
) -> Result<(), String> {
    const F64: f64 = 1e-14;
    for case in loss_golden::cases() {
        let convert = |values: &[f64]| values.iter().map(|&v| T::from_f64(v)).collect();
        let mut batch = Batch::<T>::new(convert(&case.logits), case.cols, case.labels.clone());
        batch.weights = case.weights.clone();
        batch.dloss = Some((case.dloss.clone(), 1));
        let got = run(&case.op, &batch)?;
        let mut reference = expected(&case.op, &batch, &[]);
        for (r, row) in reference.rows.iter_mut().enumerate() {
            if let Some(row) = row {
                (row.loss, row.lse) = (case.loss[r], case.lse[r]);
                row.dlogits = case.dlogits[r * case.cols..][..case.cols].to_vec();
                // PyTorch's gradient of a confident row is 1 − p, rounded in f64.
                row.loss_bound += F64;
                row.dlogits_bound.iter_mut().for_each(|b| *b += F64);
            }
        }
        let worst = check(&case.op, &batch, &reference, &got);
        if !worst.ok() {
            return Err(format!("{}: {worst:?} of the bounds", case.name));
        }
        let mean = f64::from(got.summary.mean);
        if (mean - case.mean).abs() > 2e-6 * case.mean.abs() {
            return Err(format!("{}: mean {mean}, not {}", case.name, case.mean));
        }
    }
    Ok(())
}

/// The masked losses of tests/golden/goldfish.json, from PyTorch. `run` must itself compare its results with the reference.
pub fn check_masked_golden(
    run: impl Fn(&CrossEntropy, &Batch<f32>) -> Result<Results<f32>, String>,
) -> Result<(), String> {
    let golden = goldfish_golden::Golden::read();
    let case = &golden.0["masked_ce"];
    let floats = |value: &serde_json::Value| -> Vec<f64> {
        let list = value.as_array().expect("a list");
        list.iter().map(|v| v.as_f64().expect("a number")).collect()
    };
    let rows = |name: &str| -> Vec<Vec<f64>> {
        let list = case[name].as_array().expect("a list");
        list.iter().map(floats).collect()
    };
    // The logits are f64. Rounding them to f32 changes the loss by at most 2^-23 of the largest logit.
    let logits = rows("logits").concat();
    let cols = case["V"].as_u64().expect("V") as usize;
    let labels = goldfish_golden::numbers(&case["y"]);
    let keep = case["keep"].as_array().expect("a list");
    let keep: Vec<f32> = (keep.iter())
        .map(|k| k.as_f64().unwrap_or_else(|| f64::from(u8::from(k == true))) as f32)
        .collect();
    let mut batch = Batch::<f32>::new(logits.iter().map(|&z| z as f32).collect(), cols, labels);
    batch.weights = Some(keep.clone());
    let op = CrossEntropy::default();
    let got = run(&op, &batch)?;
    let close = |what: &str, got: f32, expected: f64| {
        if (f64::from(got) - expected).abs() <= 2e-6 * (1.0 + expected.abs()) {
            Ok(())
        } else {
            Err(format!("{what}: {got:e}, not {expected:e}"))
        }
    };
    let number = |name: &str| case[name].as_f64().expect("a number");
    close("mean", got.summary.mean, number("loss_mean_kept"))?;
    close("sum", got.summary.loss, number("loss_sum_kept"))?;
    for (got, expected) in got.dlogits.iter().zip(rows("grad").concat()) {
        close("gradient", *got, expected)?;
    }
    for (r, loss) in floats(&case["per_token_ce"]).into_iter().enumerate() {
        close("loss", got.loss[r], loss * f64::from(keep[r]))?;
    }
    batch.weights = None;
    let all = run(&op, &batch)?;
    close("all", all.summary.mean, number("loss_mean_all_tokens"))?;
    let dropped = (f64::from(all.summary.loss) - f64::from(got.summary.loss))
        / (all.summary.kept - got.summary.kept) as f64;
    close("dropped", dropped as f32, number("loss_mean_dropped"))
}
