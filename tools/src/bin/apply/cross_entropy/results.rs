//! The results of a loss, independent of the backend.

use xact::CrossEntropySummary;

/// The results of the rows, and the totals.
pub struct Results {
    pub loss: Vec<f64>,
    pub z_loss: Vec<f64>,
    pub lse: Vec<f64>,
    pub argmax: Vec<i32>,
    pub summary: Summary,
}

impl Results {
    /// The results of masked rows.
    pub fn masked(n: usize) -> Results {
        Results {
            loss: vec![0.0; n],
            z_loss: vec![0.0; n],
            lse: vec![0.0; n],
            argmax: vec![-1; n],
            summary: Summary::default(),
        }
    }
}

/// Converts the numbers to another type.
pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

/// The totals over the rows.
#[derive(Default)]
pub struct Summary {
    pub mean: f64,
    pub loss: f64,
    pub z_loss: f64,
    pub normalizer: f64,
    pub weight: f64,
    /// The number of rows whose label is not ignored.
    pub labels: u64,
    pub kept: u64,
    pub dropped: u64,
    /// The number of correct rows, if it was counted.
    pub correct: Option<u64>,
    /// The loss of the dropped rows, if it was computed.
    pub dropped_loss: Option<f64>,
    /// The first row whose label is no class.
    pub bad_row: Option<usize>,
    /// The first other row whose loss is NaN.
    pub nan_row: Option<usize>,
}

impl Summary {
    /// Converts a summary of a backend, some of whose numbers may not have been computed.
    pub fn of(summary: &CrossEntropySummary, with_argmax: bool, dropped_loss: bool) -> Summary {
        let row = |row: u64| (row != u64::MAX).then_some(row as usize);
        Summary {
            mean: summary.mean.into(),
            loss: summary.loss.into(),
            z_loss: summary.z_loss.into(),
            normalizer: summary.normalizer.into(),
            weight: summary.weight.into(),
            labels: summary.labels,
            kept: summary.kept,
            dropped: summary.dropped,
            correct: with_argmax.then_some(summary.correct),
            dropped_loss: dropped_loss.then_some(summary.dropped_loss.into()),
            bad_row: row(summary.bad_row),
            nan_row: row(summary.nan_row),
        }
    }

    /// Prints the totals, which are not in the output file.
    pub fn tell(&self, labels: &[i64]) {
        if let Some(row) = self.bad_row {
            eprintln!(
                "warning: the label of row {row}, {}, is no class; its results are NaN",
                labels[row]
            );
        }
        if let Some(row) = self.nan_row {
            eprintln!("warning: the loss of row {row} is NaN, by its logits or its weight");
        }
        eprintln!(
            "kept {} rows, dropped {}, of {} with a label",
            self.kept, self.dropped, self.labels
        );
        if let Some(correct) = self.correct {
            eprintln!("correct {correct}");
        }
        let [loss, z_loss, mean] = [self.loss, self.z_loss, self.mean].map(|v| v as f32);
        let [weight, normalizer] = [self.weight, self.normalizer].map(|v| v as f32);
        eprintln!("loss {loss}, of it z-loss {z_loss}; weight {weight}");
        eprintln!("divided by {normalizer}: mean {mean}");
        if let Some(dropped) = self.dropped_loss {
            eprintln!("loss of the dropped rows {}", dropped as f32);
        }
    }
}
