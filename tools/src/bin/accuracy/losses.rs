//! The rows of cross-entropy.

use xact::{CrossEntropy, Dtype, Element, Normalizer};

use super::{Job, Jobs, Row};
use xact_dev::check;
use xact_dev::choose::Gpu;
use xact_dev::inputs::Random;
use xact_dev::loss::{self, Batch, How, Uploaded};
use xact_dev::same::bits;

/// The result of a forward is the loss, that of a backward the gradient of the logits.
const OP: &str = "cross_entropy";

/// The options that are measured, by name.
fn options() -> [(&'static str, CrossEntropy); 3] {
    let plain = CrossEntropy::default().normalizer(Normalizer::None);
    let smoothed = plain.label_smoothing(0.1).z_loss(1e-4);
    let capped = plain.softcap(30.0);
    [("plain", plain), ("smoothed", smoothed), ("capped", capped)]
}

const CLASSES: usize = 4001;
const ROWS: usize = 120;

/// Rows of random logits with growing spread and offset. In every second row, the target is far larger than the others.
fn batch<T: Element>() -> Batch<T> {
    let mut random = Random(5);
    let mut logits: Vec<T> = Vec::new();
    let mut labels = Vec::new();
    for r in 0..ROWS {
        let (spread, offset) = ([0.1, 1.0, 3.0, 6.0][r % 4], [0.0, -20.0, 50.0][r % 3]);
        let row = random.normal::<f32>(CLASSES, spread);
        let target = (random.bits() % CLASSES as u64) as usize;
        let mut row: Vec<f64> = row.iter().map(|z| f64::from(*z) + offset).collect();
        if r % 2 == 1 {
            row[target] = offset + 8.0 + 3.0 * spread + (r / 8) as f64;
        }
        logits.extend(row.into_iter().map(T::from_f64));
        labels.push(target as i64);
    }
    Batch::new(logits, CLASSES, labels)
}

impl Jobs {
    /// The rows of cross-entropy in one type.
    pub fn losses<T: Element>(&mut self) {
        for (name, op) in options() {
            self.jobs.push(Job {
                name: format!("{OP} {} {name}", T::DTYPE),
                run: Box::new(move |gpu| measure::<T>(gpu, name, &op)),
            });
        }
    }
}

/// The worst error of a number of results, and the number of correctly rounded ones.
#[derive(Default)]
struct Tally {
    n: usize,
    ulps: f64,
    at: f64,
    correctly_rounded: usize,
}

impl Tally {
    fn add(&mut self, ulps: f64, at: f64, correctly_rounded: bool) {
        if self.n == 0 || ulps > self.ulps {
            (self.ulps, self.at) = (ulps, at);
        }
        self.n += 1;
        self.correctly_rounded += usize::from(correctly_rounded);
    }
}

/// The distance of neighbouring values at `x`.
fn ulp<T: Element>(x: f64) -> f64 {
    let exponent = if x == 0.0 {
        T::MIN_EXPONENT
    } else {
        x.abs().log2().floor() as i32
    };
    2f64.powi(exponent.max(T::MIN_EXPONENT) + T::ULP_EXPONENT)
}

fn measure<T: Element>(gpu: &Gpu, params: &'static str, op: &CrossEntropy) -> Vec<Row> {
    let batch = batch::<T>();
    let expected = loss::expected(op, &batch, &[]);
    let mut rows = Vec::new();
    for (settings, _) in check::modes(gpu, &check::EVERY) {
        let results = cuda_emulator::with_settings(settings, || {
            let uploaded = Uploaded::new(gpu, &batch, How::default());
            loss::forward_backward(gpu, op, &batch, &uploaded)
        });
        let results = results.expect("a batch without fault");
        let worst = loss::check(op, &batch, &expected, &results);
        let (mut losses, mut gradients) = (Tally::default(), Tally::default());
        for (r, row) in expected.rows.iter().enumerate() {
            let row = row.as_ref().expect("all rows count");
            let error = (f64::from(results.loss[r]) - row.loss).abs();
            let rounded = results.loss[r] == row.loss as f32;
            losses.add(error / (row.lse_bound / 4.0), row.loss, rounded);
            let max = batch.logits[r * CLASSES + row.argmax.expect("numbers")].to_f64();
            for (j, &d) in row.dlogits.iter().enumerate() {
                let got = results.dlogits[r * CLASSES + j];
                let below = batch.logits[r * CLASSES + j].to_f64() - max;
                let bound = row.dlogits_bound[j];
                let scale = match T::DTYPE {
                    // The bound is (8 + |t|)/2 ulp of the terms.
                    Dtype::F32 => 2.0 * bound / (8.0 - below * std::f64::consts::LOG2_E),
                    _ => ulp::<T>(d).max(bound),
                };
                let rounded = bits(&[got]) == bits(&[T::from_f64(d)]);
                gradients.add((got.to_f64() - d).abs() / scale, below, rounded);
            }
        }
        let row = |direction, result, tally: Tally, share: f64| Row {
            op: OP,
            dtype: T::DTYPE,
            direction,
            result,
            params,
            values: Vec::new(),
            options: format!("{op:?}"),
            approx: gpu.emulated.then_some(settings.approx),
            n: tally.n,
            worst_ulp: tally.ulps,
            worst_at: tally.at,
            correctly_rounded: tally.correctly_rounded,
            ok: share <= 1.0,
        };
        rows.push(row("forward", "loss", losses, worst.loss.max(worst.lse)));
        rows.push(row("backward", "dlogits", gradients, worst.dlogits));
    }
    rows
}
