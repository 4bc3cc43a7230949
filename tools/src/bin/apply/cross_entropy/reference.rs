//! Computes the loss in f64, row by row from the definition.

use xact::Normalizer;
use xact::loss::cross_entropy::RowStatus;

use super::inputs::Inputs;
use super::results::{Results, Summary};

impl Inputs {
    /// The results, and the gradient of a backward.
    pub fn reference(&self, logits: &[f64], labels: &[i64]) -> xact::Result<(Results, Vec<f64>)> {
        let op = &self.op;
        op.check()?;
        let keep = match &self.goldfish {
            Some(goldfish) => goldfish.keep()?,
            None => vec![true; self.n],
        };
        let weight = |row: usize| self.weights.as_ref().map_or(1.0, |weights| weights[row]);
        let status = |row: usize| {
            // The status of a row depends only on whether the weight is 0.
            let weighs = f32::from(u8::from(weight(row) != 0.0));
            op.row_status(labels[row], weighs, !keep[row], self.classes as u64)
        };
        let statuses: Vec<RowStatus> = (0..self.n).map(status).collect();
        let counts = |&row: &usize| matches!(statuses[row], RowStatus::Kept | RowStatus::Bad);
        let mut summary = Summary {
            kept: (0..self.n).filter(counts).count() as u64,
            labels: labels
                .iter()
                .filter(|&&label| label != op.ignore_index)
                .count() as u64,
            weight: (0..self.n).filter(counts).map(weight).sum(),
            dropped: statuses
                .iter()
                .filter(|&&status| status == RowStatus::Dropped)
                .count() as u64,
            correct: self.with_argmax.then_some(0),
            dropped_loss: op.dropped_loss.then_some(0.0),
            bad_row: statuses.iter().position(|&status| status == RowStatus::Bad),
            ..Summary::default()
        };
        summary.normalizer = self.divide_by.unwrap_or(match op.normalizer {
            Normalizer::None => 1.0,
            Normalizer::Kept => summary.kept as f64,
            Normalizer::Labels => summary.labels as f64,
            Normalizer::Weight => summary.weight,
            other => unreachable!("{other:?} is no normalizer of the command line"),
        });
        let (mut dlogits, mut results) = (Vec::new(), Results::masked(self.n));
        if self.is_backward {
            dlogits = vec![0.0; logits.len()];
        }
        for row in 0..self.n {
            let classes = row * self.cols..row * self.cols + self.classes;
            let is_kept = match statuses[row] {
                RowStatus::Kept => true,
                RowStatus::Dropped if op.dropped_loss => false,
                RowStatus::Bad => {
                    for result in [&mut results.loss, &mut results.z_loss, &mut results.lse] {
                        result[row] = f64::NAN;
                    }
                    (summary.loss, summary.z_loss) = (f64::NAN, f64::NAN);
                    if self.is_backward {
                        dlogits[classes].fill(f64::NAN);
                    }
                    continue;
                }
                _ => continue,
            };
            let dloss = self
                .dloss
                .as_ref()
                .map_or(1.0, |dloss| dloss[row % dloss.len()]);
            let (label, upstream) = (labels[row] as usize, dloss / summary.normalizer);
            let of_row = op.evaluate(&logits[classes.clone()], label, weight(row), upstream);
            results.lse[row] = of_row.lse;
            results.argmax[row] = of_row.argmax.map_or(-1, |class| class as i32);
            if !is_kept {
                summary.dropped_loss = summary.dropped_loss.map(|sum| sum + of_row.loss);
                continue;
            }
            if of_row.loss.is_nan() {
                summary.nan_row.get_or_insert(row);
            }
            (results.loss[row], results.z_loss[row]) = (of_row.loss, of_row.z_loss);
            summary.loss += of_row.loss;
            summary.z_loss += of_row.z_loss;
            let is_correct = of_row.argmax == Some(label);
            summary.correct = summary.correct.map(|sum| sum + u64::from(is_correct));
            if self.is_backward {
                dlogits[classes].copy_from_slice(&of_row.dlogits);
            }
        }
        summary.mean = match summary.kept {
            0 if op.empty_is_nan => f64::NAN,
            0 => 0.0,
            _ => summary.loss / summary.normalizer,
        };
        results.summary = summary;
        Ok((results, dlogits))
    }
}
