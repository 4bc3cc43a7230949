//! The reference of the head, compared with PyTorch and with finite differences of itself. It needs no kernels.

use approx::relative_eq;
use proptest::prelude::*;
use xact::loss::cross_entropy::RowStatus;
use xact::loss::linear_cross_entropy::Target;
use xact::{CrossEntropy, LinearCrossEntropy, Normalizer};
use xact_dev::linear_golden as golden;

#[test]
fn the_reference_is_pytorch() {
    let mut rows = 0;
    for case in golden::cases() {
        let f32s = |values: &[f64]| -> Vec<f32> { values.iter().map(|&v| v as f32).collect() };
        let (hidden, weight) = (f32s(&case.hidden), f32s(&case.weight));
        let classes = (weight.len() / case.cols) as u64;
        let of_row = |r: usize| case.weights.as_ref().map_or(1.0, |w| w[r]);
        let is_kept = |r: &usize| {
            let status = case
                .op
                .row_status(case.labels[*r], of_row(*r), false, classes);
            status == RowStatus::Kept
        };
        let kept: Vec<_> = (0..case.labels.len()).filter(is_kept).collect();
        let divisor = match case.op.normalizer {
            Normalizer::Kept => kept.len() as f64,
            Normalizer::Weight => kept.iter().map(|&r| f64::from(of_row(r))).sum(),
            _ => 1.0,
        };
        let target = |r: usize| {
            let upstream = f64::from(case.dloss[r]) / divisor;
            kept.contains(&r)
                .then(|| Target::new(case.labels[r] as usize, of_row(r).into(), upstream))
        };
        let targets: Vec<_> = (0..case.labels.len()).map(target).collect();
        let head = LinearCrossEntropy::new(case.op);
        let got = head.evaluate(&hidden, &weight, case.cols, &targets);
        let loss = |r: usize| got.rows[r].as_ref().map_or(0.0, |row| row.loss);
        let losses: Vec<f64> = (0..targets.len()).map(loss).collect();
        let mean = [losses.iter().sum::<f64>() / divisor];
        for (what, got, theirs) in [
            ("loss", &losses[..], &case.loss[..]),
            ("mean", &mean, &[case.mean]),
            ("d_hidden", &got.d_hidden, &case.d_hidden),
            ("d_weight", &got.d_weight, &case.d_weight),
        ] {
            assert_eq!(got.len(), theirs.len());
            for (got, theirs) in got.iter().zip(theirs) {
                let near = relative_eq!(*got, *theirs, epsilon = 1e-13, max_relative = 1e-12);
                assert!(near, "{}, {what}: {got:e}, theirs {theirs:e}", case.name);
            }
        }
        rows += kept.len();
    }
    assert!(rows > 30, "{rows} rows");
}

proptest! {
    /// Central differences of Σ upstream·loss, with steps that are exact in f32.
    #[test]
    fn the_gradients_are_those_of_the_loss(
        values in prop::collection::vec(-24i32..24, 27),
        labels in prop::collection::vec(prop::option::of(0..5usize), 4),
        at in 0..27usize,
        label_smoothing in prop_oneof![Just(0.0f32), 0.0f32..0.9],
        z_loss in prop_oneof![Just(0.0f32), 0.0f32..0.1],
        softcap in prop::option::of(1.0f32..40.0),
    ) {
        const STEP: f32 = 1.0 / 1024.0;
        const COLS: usize = 3;
        let mut loss = CrossEntropy::default().label_smoothing(label_smoothing).z_loss(z_loss);
        loss.softcap = softcap;
        let op = LinearCrossEntropy::new(loss);
        let upstream = |row: usize| 0.5 + row as f64;
        let targets: Vec<_> = labels.iter().enumerate()
            .map(|(row, label)| label.map(|label| Target::new(label, 1.0, upstream(row))))
            .collect();
        // Four rows of hidden states, then five of weights.
        let mut values: Vec<f32> = values.iter().map(|&v| v as f32 / 16.0).collect();
        let evaluate = |values: &[f32]| {
            let (hidden, weight) = values.split_at(4 * COLS);
            op.evaluate(hidden, weight, COLS, &targets)
        };
        let exact = evaluate(&values);
        let gradients = [exact.d_hidden, exact.d_weight].concat();
        let mut moved = |by: f32| -> f64 {
            let before = values[at];
            values[at] += by;
            let rows = evaluate(&values).rows;
            values[at] = before;
            let losses = rows.iter().enumerate();
            losses.map(|(row, of_row)| of_row.as_ref().map_or(0.0, |r| upstream(row) * r.loss)).sum()
        };
        let slope = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
        let scale = moved(0.0).abs().max(1.0);
        prop_assert!((slope - gradients[at]).abs() < 1e-5 * scale, "{slope:e} {:e}", gradients[at]);
    }
}
