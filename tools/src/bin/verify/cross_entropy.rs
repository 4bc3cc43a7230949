//! The rows of cross-entropy.

use cuda_emulator::Approx;
use xact::{CrossEntropy, Element};

use super::{DIFFERENCES, Row};
use xact_dev::check;
use xact_dev::choose::Gpu;
use xact_dev::inputs::Random;
use xact_dev::loss::{self, Batch, How, Results, Uploaded};
use xact_dev::loss_cpu;

/// The directions: the losses alone; the losses and the gradient in place; the gradient from the saved statistics of a
/// forward.
pub const DIRECTIONS: [&str; 3] = ["forward", "fused", "backward"];

/// The numbers of rows and of classes (odd). On a device with clusters, each row has its own cluster.
const ROWS: usize = 200;
const CLASSES: usize = 4593;
/// The first of each this number of rows has an ignored label.
const IGNORED: usize = 10;

/// Runs on a device, or without one on the CPU backend.
pub fn verify<T: Element>(gpu: Option<&Gpu>, op: &CrossEntropy, mut row: Row) -> Row {
    let mut random = Random(3);
    let logits = random.normal::<T>(ROWS * CLASSES, 4.0);
    let label = |r: usize| match r % IGNORED {
        0 => op.ignore_index,
        _ => (random.bits() % CLASSES as u64) as i64,
    };
    let labels: Vec<i64> = (0..ROWS).map(label).collect();
    let mut batch = Batch::new(logits, CLASSES, labels);
    batch.weights = Some((0..ROWS).map(|r| [1.0, 0.25, 2.0][r % 3]).collect());
    let expected = loss::expected(op, &batch, &[]);
    row.n = ROWS * CLASSES;
    row.differences = Some(differences(op));
    let results = match gpu {
        Some(gpu) => on_device(gpu, op, &batch, &mut row),
        None => vec![match row.direction {
            "fused" => loss_cpu::with_gradient(op, &batch, loss_cpu::How::default()),
            _ => loss_cpu::forward_backward(op, &batch, loss_cpu::How::default()),
        }],
    };
    let (mut ok, mut share) = (true, 0.0f64);
    for results in results {
        let Ok(results) = results else {
            ok = false;
            continue;
        };
        let worst = loss::check(op, &batch, &expected, &results);
        share = share.max(match row.direction {
            "forward" => worst.loss.max(worst.lse),
            _ => worst.dlogits,
        });
    }
    row.share = Some(share);
    row.ok &= ok && share <= 1.0;
    row.ok &= row.differences.is_none_or(|d| d <= DIFFERENCES);
    row
}

/// The results in each mode of the approximate instructions, and the bytes that are moved.
fn on_device<T: Element>(
    gpu: &Gpu,
    op: &CrossEntropy,
    batch: &Batch<T>,
    row: &mut Row,
) -> Vec<xact::Result<Results<T>>> {
    let size = T::DTYPE.size();
    let all = row.n as u64 * size;
    let kept = (ROWS - ROWS.div_ceil(IGNORED)) as u64 * CLASSES as u64 * size;
    // The kept rows are read, and all gradients are written.
    let floor_bytes = match row.direction {
        "forward" => kept,
        _ => kept + all,
    };
    row.floor_bytes = Some(floor_bytes);
    let direction = row.direction;
    let call = |how| {
        let uploaded = Uploaded::new(gpu, batch, how);
        match direction {
            "fused" => loss::with_gradient(gpu, op, batch, &uploaded),
            _ => loss::forward_backward(gpu, op, batch, &uploaded),
        }
    };
    let modes = check::modes(gpu, &[Approx::Nearest, Approx::Lowest, Approx::Highest]);
    let results = modes
        .into_iter()
        .map(|(settings, _)| cuda_emulator::with_settings(settings, || call(How::default())));
    let results = results.collect();
    if gpu.emulated {
        // To find the argmax, a few logits are read again.
        let how = How {
            all_outputs: false,
            ..How::default()
        };
        let (_, launches) = cuda_emulator::record(|| call(how));
        let of_direction = launches.iter().filter(|launch| match direction {
            "forward" => launch.kernel.contains("_stats_"),
            "backward" => launch.kernel.contains("_gradient_"),
            _ => true,
        });
        // Only logits and gradients have buffers of that size.
        let tensors = of_direction.flat_map(|launch| &launch.buffers);
        let tensors = tensors.filter(|buffer| buffer.len >= all);
        let bytes = tensors.map(|b| b.bytes_read + b.bytes_written).sum();
        row.bytes = Some(bytes);
        // The gradient of the target does not need its logit, which is not read if it would need a separate read.
        row.ok &= bytes <= floor_bytes;
    }
    results
}

/// The largest difference between the reference and finite differences of itself, for a small row.
fn differences(op: &CrossEntropy) -> f64 {
    // The step is a power of two, so that f32 logits change by exactly this amount.
    const STEP: f32 = 1.0 / 1024.0;
    let row: Vec<f32> = (0..23).map(|i| (i * 7 % 23) as f32 * 0.5 - 4.0).collect();
    let mut worst = 0.0f64;
    for target in [0, 9, 22] {
        let found = op.evaluate(&row, target, 0.75, 1.0);
        for (j, &d) in found.dlogits.iter().enumerate() {
            let at = |step: f32| {
                let mut row = row.clone();
                row[j] += step;
                op.evaluate(&row, target, 0.75, 1.0).loss
            };
            // Richardson extrapolation: the error is of fourth order in the step.
            let slope = |step: f32| (at(step) - at(-step)) / f64::from(2.0 * step);
            let difference = (4.0 * slope(STEP) - slope(2.0 * STEP)) / 3.0;
            worst = worst.max((difference - d).abs() / d.abs().max(1e-3));
        }
    }
    worst
}
