//! The cross-entropy reference, compared with PyTorch and with finite differences of itself. It needs no kernels.

use approx::{abs_diff_eq, relative_eq};
use proptest::prelude::*;
use xact::CrossEntropy;
use xact::loss::cross_entropy::RowStatus;
use xact_dev::loss_golden as golden;

#[test]
fn the_reference_is_pytorch() {
    let mut rows = 0;
    for case in golden::cases() {
        let logits: Vec<f32> = case.logits.iter().map(|&z| z as f32).collect();
        let weight = |r: usize| case.weights.as_ref().map_or(1.0, |w| w[r]);
        let status = |r: usize| {
            case.op
                .row_status(case.labels[r], weight(r), false, case.cols as u64)
        };
        let kept: Vec<_> = (0..case.labels.len())
            .filter(|&r| status(r) == RowStatus::Kept)
            .collect();
        let weights = || kept.iter().map(|&r| f64::from(weight(r)));
        let normalizer = match case.op.normalizer {
            xact::Normalizer::Kept => kept.len() as f64,
            xact::Normalizer::Weight => weights().sum(),
            _ => 1.0,
        };
        let close = |what: &str, got: f64, theirs: f64| {
            let near = relative_eq!(got, theirs, epsilon = 1e-13, max_relative = 1e-12);
            assert!(near, "{}, {what}: {got:e}, theirs {theirs:e}", case.name);
        };
        let mut sum = 0.0;
        for r in 0..case.labels.len() {
            let theirs = &case.dlogits[r * case.cols..][..case.cols];
            if !kept.contains(&r) {
                assert!(case.loss[r] == 0.0 && theirs.iter().all(|&d| d == 0.0));
                continue;
            }
            let row = case.op.evaluate(
                &logits[r * case.cols..][..case.cols],
                case.labels[r] as usize,
                f64::from(weight(r)),
                f64::from(case.dloss[r]) / normalizer,
            );
            close("loss", row.loss, case.loss[r]);
            close("lse", row.lse, case.lse[r]);
            for (&got, &theirs) in row.dlogits.iter().zip(theirs) {
                close("dlogits", got, theirs);
            }
            sum += row.loss;
            rows += 1;
        }
        close("mean", sum / normalizer, case.mean);
    }
    assert!(rows > 80, "{rows} rows");
}

proptest! {
    /// Central differences of the loss, with steps that are exact in f32 logits.
    #[test]
    fn the_gradient_is_that_of_the_loss(
        logits in prop::collection::vec(-80i32..80, 2..12),
        target in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        label_smoothing in prop_oneof![Just(0.0f32), 0.0f32..0.9],
        z_loss in prop_oneof![Just(0.0f32), 0.0f32..0.1],
        softcap in prop::option::of(1.0f32..40.0),
        weight in -2.0..2.0f64,
    ) {
        const STEP: f32 = 1.0 / 1024.0;
        let mut op = CrossEntropy::default().label_smoothing(label_smoothing).z_loss(z_loss);
        op.softcap = softcap;
        let mut z: Vec<f32> = logits.iter().map(|&z| z as f32 / 8.0).collect();
        let (target, at) = (target.index(z.len()), at.index(z.len()));
        let row = op.evaluate(&z, target, weight, 1.0);
        let mut moved = |by: f32| {
            let before = z[at];
            z[at] += by;
            let loss = op.evaluate(&z, target, weight, 1.0).loss;
            z[at] = before;
            loss
        };
        let slope = (moved(STEP) - moved(-STEP)) / f64::from(2.0 * STEP);
        let scale = row.loss.abs().max(1.0);
        let near = abs_diff_eq!(slope, row.dlogits[at], epsilon = 1e-5 * scale);
        prop_assert!(near, "{slope:e} {:e}", row.dlogits[at]);
        let sum: f64 = row.dlogits.iter().sum();
        if softcap.is_none() && z_loss == 0.0 {
            prop_assert!(sum.abs() < 1e-12, "a gradient that sums to {sum:e}");
        }
    }
}
