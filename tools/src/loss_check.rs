//! A batch of rows on the host, the results of a backend, and their comparison with the reference.

use xact::loss::cross_entropy::{Row, RowStatus, Shard};
use xact::{CrossEntropy, CrossEntropySummary, Element, RowStats};

use super::same::bits;

/// A batch of rows on the host.
#[derive(Clone, Debug)]
pub struct Batch<T> {
    /// `[labels.len(), cols]`.
    pub logits: Vec<T>,
    /// The number of columns of a row.
    pub cols: usize,
    /// The class of each row, or the ignored label.
    pub labels: Vec<i64>,
    /// The weight of each row.
    pub weights: Option<Vec<f32>>,
    /// The upstream gradients, and their stride.
    pub dloss: Option<(Vec<f32>, i64)>,
    /// The divisor, if it replaces that of the options.
    pub normalizer: Option<f32>,
    /// The columns of the vocabulary that this batch has.
    pub shard: Option<Shard>,
}

impl<T> Batch<T> {
    /// A batch with only logits and labels.
    pub fn new(logits: Vec<T>, cols: usize, labels: Vec<i64>) -> Batch<T> {
        assert_eq!(logits.len(), cols * labels.len());
        Batch {
            logits,
            cols,
            labels,
            weights: None,
            dloss: None,
            normalizer: None,
            shard: None,
        }
    }
}

/// The results of a backend.
#[derive(Clone, Debug)]
pub struct Results<T> {
    /// `[rows]`.
    pub loss: Vec<f32>,
    /// The z-loss term of `loss`, `[rows]`.
    pub z_loss: Vec<f32>,
    /// The logarithm of the sum of exponentials, `[rows]`.
    pub lse: Vec<f32>,
    /// The class with the largest logit, `[rows]`.
    pub argmax: Vec<i32>,
    /// The saved statistics of the rows, which ranks exchange.
    pub stats: Vec<RowStats>,
    /// The totals of the batch.
    pub summary: CrossEntropySummary,
    /// `[rows, cols]`.
    pub dlogits: Vec<T>,
}

impl<T: Element> Results<T> {
    /// The bits of all results except the gradients.
    pub fn statistics(&self) -> Vec<u32> {
        let floats = [&self.loss, &self.z_loss, &self.lse];
        let floats = floats
            .iter()
            .flat_map(|values| values.iter().map(|v| v.to_bits()));
        let stats = self.stats.iter().flat_map(|s| {
            [
                s.max.to_bits(),
                s.rest.to_bits(),
                s.target.to_bits(),
                s.sum.to_bits(),
                s.argmax,
            ]
        });
        let s = &self.summary;
        let sums = [
            s.loss,
            s.mean,
            s.z_loss,
            s.weight,
            s.normalizer,
            s.dropped_loss,
        ];
        let counts = [s.labels, s.kept, s.dropped, s.correct, s.bad_row, s.nan_row];
        let counts = counts.iter().flat_map(|&c| [c as u32, (c >> 32) as u32]);
        floats
            .chain(self.argmax.iter().map(|&a| a as u32))
            .chain(stats)
            .chain(sums.map(f32::to_bits))
            .chain(counts)
            .collect()
    }
}

/// The reference results of a batch.
pub struct Expected {
    /// The status of each row: kept, or why it is masked.
    pub statuses: Vec<RowStatus>,
    /// The results of the rows that are read.
    pub rows: Vec<Option<Row>>,
    /// The divisor of the gradients.
    pub normalizer: f64,
}

/// The number of labels that are not ignored.
fn labels<T>(op: &CrossEntropy, batch: &Batch<T>) -> u64 {
    let labels = batch.labels.iter();
    labels.filter(|&&label| label != op.ignore_index).count() as u64
}

/// Computes the reference of a batch of whole rows. `dropped` says which rows Goldfish drops.
pub fn expected<T: Element>(op: &CrossEntropy, batch: &Batch<T>, dropped: &[bool]) -> Expected {
    let classes = op.vocab.map_or(batch.cols, |v| v as usize);
    let weight = |r: usize| batch.weights.as_ref().map_or(1.0, |w| w[r]);
    let is_dropped = |r: usize| dropped.get(r).copied().unwrap_or(false);
    let statuses: Vec<_> = (batch.labels.iter().enumerate())
        .map(|(r, &label)| op.row_status(label, weight(r), is_dropped(r), classes as u64))
        .collect();
    let kept =
        || (0..statuses.len()).filter(|&r| matches!(statuses[r], RowStatus::Kept | RowStatus::Bad));
    let normalizer = match op.normalizer {
        _ if batch.normalizer.is_some() => f64::from(batch.normalizer.unwrap_or_default()),
        xact::Normalizer::None => 1.0,
        xact::Normalizer::Kept => kept().count() as f64,
        xact::Normalizer::Labels => labels(op, batch) as f64,
        xact::Normalizer::Weight => kept().map(|r| f64::from(weight(r))).sum(),
        other => panic!("{other:?}"),
    };
    let rows = (0..statuses.len())
        .map(|r| {
            let dloss = batch.dloss.as_ref().map_or(1.0, |(values, stride)| {
                let at = if *stride < 0 {
                    (statuses.len() as i64 - 1 - r as i64) * -stride
                } else {
                    r as i64 * stride
                };
                f64::from(values[at as usize])
            });
            matches!(statuses[r], RowStatus::Kept | RowStatus::Dropped).then(|| {
                let row = &batch.logits[r * batch.cols..][..classes];
                op.evaluate(
                    row,
                    batch.labels[r] as usize,
                    f64::from(weight(r)),
                    dloss / normalizer,
                )
            })
        })
        .collect();
    Expected {
        statuses,
        rows,
        normalizer,
    }
}

/// The worst error of each result, as a share of its bound.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Worst {
    /// Of the losses.
    pub loss: f64,
    /// Of the logarithms of the sums.
    pub lse: f64,
    /// Of the gradients.
    pub dlogits: f64,
}

impl Worst {
    /// Whether all errors are within their bounds.
    pub fn ok(&self) -> bool {
        self.loss <= 1.0 && self.lse <= 1.0 && self.dlogits <= 1.0
    }
}

/// Panics unless the results are within their bounds.
pub fn within(what: impl std::fmt::Debug, worst: Worst) -> Result<(), String> {
    if worst.ok() {
        Ok(())
    } else {
        Err(format!("{what:?}: {worst:?} of the bounds"))
    }
}

/// Panics unless the results have the same bits as the others.
pub fn same<T: Element>(what: &str, got: &Results<T>, expected: &Results<T>) -> Result<(), String> {
    let (a, b) = (got.statistics(), expected.statistics());
    if a != b {
        let at = (0..a.len().min(b.len())).find(|&i| a[i] != b[i]);
        return Err(format!("{what}: statistics differ at {at:?}"));
    }
    if bits(&got.dlogits) == bits(&expected.dlogits) {
        return Ok(());
    }
    let mut pairs = got.dlogits.iter().zip(&expected.dlogits).enumerate();
    let at = pairs.find(|(_, (a, b))| bits(&[**a]) != bits(&[**b]));
    Err(format!("{what}: gradients differ: {at:?}"))
}

fn share(got: f64, expected: f64, bound: f64) -> f64 {
    if got == expected || (got.is_nan() && expected.is_nan()) {
        return 0.0;
    }
    // The value is too large for f32.
    if got.is_infinite() && expected.abs() > f64::from(f32::MAX) && got * expected > 0.0 {
        return 0.0;
    }
    let share = (got - expected).abs() / bound;
    if share.is_nan() { f64::INFINITY } else { share }
}

/// The error of an f32 gradient as a share of its bound. A 16-bit gradient has 0 if it is within the bound's interval, whose
/// ends are rounded to the type, else infinity.
fn gradient_share<T: Element>(got: T, expected: f64, bound: f64) -> f64 {
    if T::ULP_EXPONENT == -23 {
        return share(got.to_f64(), expected, bound);
    }
    let ends = [expected - bound, expected + bound].map(|end| T::from_f64(end).to_f64());
    let got = got.to_f64();
    let inside = (ends[0]..=ends[1]).contains(&got);
    if inside || (got.is_nan() && expected.is_nan()) {
        0.0
    } else {
        f64::INFINITY
    }
}

/// Compares results with the reference, and returns the errors as shares of the bounds.
pub fn check<T: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    expected: &Expected,
    got: &Results<T>,
) -> Worst {
    let classes = op.vocab.map_or(batch.cols, |v| v as usize);
    let mut worst = Worst::default();
    for (r, status) in expected.statuses.iter().enumerate() {
        let gradient = &got.dlogits[r * batch.cols..][..batch.cols];
        let (inside, padding) = gradient.split_at(classes);
        let zero = |values: &[T]| values.iter().all(|d| d.to_f64().to_bits() == 0);
        assert!(zero(padding), "row {r}: padding");
        let loss = [got.loss[r], got.z_loss[r]];
        match status {
            RowStatus::Bad => {
                assert!(loss.iter().all(|l| l.is_nan()), "row {r}: {loss:?}");
                assert!(got.lse[r].is_nan() && got.argmax[r] == -1, "row {r}");
                assert!(inside.iter().all(|d| d.to_f64().is_nan()), "row {r}");
                continue;
            }
            RowStatus::Masked | RowStatus::Dropped => {
                assert!(loss.iter().all(|l| l.to_bits() == 0), "row {r}: {loss:?}");
                assert!(zero(inside), "row {r}");
                if *status == RowStatus::Masked || !op.dropped_loss {
                    assert_eq!((got.lse[r].to_bits(), got.argmax[r]), (0, -1), "row {r}");
                    continue;
                }
            }
            _ => assert_eq!(*status, RowStatus::Kept),
        }
        let row = expected.rows[r].as_ref().expect("read");
        let lse = share(f64::from(got.lse[r]), row.lse, row.lse_bound);
        worst.lse = worst.lse.max(lse);
        assert_eq!(
            usize::try_from(got.argmax[r]).ok(),
            row.argmax,
            "row {r}: argmax"
        );
        if *status == RowStatus::Dropped {
            continue;
        }
        let loss = share(f64::from(got.loss[r]), row.loss, row.loss_bound);
        if loss > 1.0 && worst.loss <= 1.0 {
            eprintln!(
                "row {r}: loss {:e} for {:e} ± {:e}",
                got.loss[r], row.loss, row.loss_bound
            );
        }
        worst.loss = worst.loss.max(loss);
        let of_z_loss = 2.0 * row.lse_bound / row.lse.abs() + 3.0 * 2f64.powi(-24);
        let z_loss = share(
            f64::from(got.z_loss[r]),
            row.z_loss,
            of_z_loss * row.z_loss.abs() + 2f64.powi(-148),
        );
        worst.loss = worst.loss.max(z_loss);
        for (j, &got) in inside.iter().enumerate() {
            let used = gradient_share(got, row.dlogits[j], row.dlogits_bound[j]);
            if used > 1.0 && worst.dlogits <= 1.0 {
                eprintln!(
                    "row {r}, class {j} (target {}): {:e} for {:e} ± {:e}",
                    batch.labels[r],
                    got.to_f64(),
                    row.dlogits[j],
                    row.dlogits_bound[j]
                );
            }
            worst.dlogits = worst.dlogits.max(used);
        }
    }
    check_summary(op, batch, expected, got);
    worst
}

/// Panics unless the summary agrees with the results of the rows.
fn check_summary<T: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    expected: &Expected,
    got: &Results<T>,
) {
    /// The allowed error, relative to the sum of the absolute terms.
    const RELATIVE: f64 = 1e-6;
    let with = |statuses: &[RowStatus]| -> Vec<usize> {
        let rows = expected.statuses.iter().enumerate();
        rows.filter(|(_, status)| statuses.contains(status))
            .map(|(r, _)| r)
            .collect()
    };
    let (kept, dropped) = (
        with(&[RowStatus::Kept, RowStatus::Bad]),
        with(&[RowStatus::Dropped]),
    );
    let s = &got.summary;
    let sum = |what: &str, got: f32, terms: Vec<f64>| {
        let sum: f64 = terms.iter().sum();
        let size: f64 = terms.iter().map(|t| t.abs()).sum();
        let used = share(f64::from(got), sum, RELATIVE * size);
        assert!(used <= 1.0, "{what} of the summary: {got:e} for {sum:e}");
    };
    let each = |rows: &[usize], of: &[f32]| rows.iter().map(|&r| f64::from(of[r])).collect();
    sum("loss", s.loss, each(&kept, &got.loss));
    sum("z_loss", s.z_loss, each(&kept, &got.z_loss));
    let weight = |r: usize| batch.weights.as_ref().map_or(1.0, |w| f64::from(w[r]));
    let weights: Vec<_> = kept.iter().map(|&r| weight(r)).collect();
    sum("weight", s.weight, weights);
    let losses = |r: usize| expected.rows[r].as_ref().map_or(0.0, |row| row.loss);
    let dropped_losses = dropped.iter().map(|&r| losses(r)).collect();
    if op.dropped_loss {
        sum("dropped_loss", s.dropped_loss, dropped_losses);
    } else {
        assert_eq!(s.dropped_loss.to_bits(), 0);
    }
    let correct = |r: &&usize| i64::from(got.argmax[**r]) == batch.labels[**r];
    let correct = with(&[RowStatus::Kept]).iter().filter(correct).count();
    let bad = with(&[RowStatus::Bad])
        .first()
        .map_or(u64::MAX, |&r| r as u64);
    let nan = |r: &&usize| got.loss[**r].is_nan();
    let nan = with(&[RowStatus::Kept])
        .iter()
        .find(nan)
        .map_or(u64::MAX, |&r| r as u64);
    assert_eq!((s.labels, s.nan_row), (labels(op, batch), nan));
    assert_eq!(
        (s.kept, s.dropped, s.correct, s.bad_row),
        (kept.len() as u64, dropped.len() as u64, correct as u64, bad)
    );
    let normalizer = share(
        f64::from(s.normalizer),
        expected.normalizer,
        RELATIVE * expected.normalizer.abs(),
    );
    assert!(
        normalizer <= 1.0,
        "{} for {}",
        s.normalizer,
        expected.normalizer
    );
    let mean = match kept.len() {
        0 if op.empty_is_nan => f32::NAN,
        0 => 0.0,
        _ => s.loss / s.normalizer,
    };
    assert!(s.mean.to_bits() == mean.to_bits() || s.mean.is_nan() && mean.is_nan());
}
