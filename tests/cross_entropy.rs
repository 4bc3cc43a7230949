//! Cross-entropy against its reference.

#[path = "cross_entropy/goldfish.rs"]
mod goldfish;
mod support;

use half::{bf16, f16};
use support::choose::{self, Gpu};
use support::loss::{self, Batch, How, Uploaded};
use xact::{CrossEntropy, Element, Normalizer};

fn noise(seed: u64, n: usize, scale: f64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            let mut sum = 0.0;
            for _ in 0..4 {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                sum += (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5;
            }
            sum * scale * 1.7
        })
        .collect()
}

fn run<T: Element>(gpu: &Gpu, op: &CrossEntropy, rows: usize, cols: usize, scale: f64) {
    let classes = op.vocab.map_or(cols, |v| v as usize);
    let logits = noise(7 + rows as u64, rows * cols, scale);
    let logits = logits.into_iter().map(T::from_f64).collect();
    let labels = (0..rows).map(|r| ((r * 7919) % classes) as i64).collect();
    let mut batch = Batch::<T>::new(logits, cols, labels);
    if rows > 2 {
        batch.labels[1] = op.ignore_index;
    }
    let expected = loss::expected(op, &batch, &[]);
    let uploaded = Uploaded::new(gpu, &batch, How::default());
    let two = loss::forward_backward(gpu, op, &batch, &uploaded).unwrap();
    let worst = loss::check(op, &batch, &expected, &two);
    eprintln!(
        "{} {rows}x{cols} {op:?}: {worst:?} {:?}",
        T::DTYPE,
        two.summary
    );
    let one = loss::with_gradient(gpu, op, &batch, &uploaded).unwrap();
    let worst = loss::check(op, &batch, &expected, &one);
    eprintln!("   {worst:?}");
    assert_eq!(one.statistics(), two.statistics());
    assert_eq!(
        support::run::bits(&one.dlogits),
        support::run::bits(&two.dlogits)
    );
}

#[test]
fn smoke() {
    let gpu = choose::open_for_tests().unwrap();
    let plain = CrossEntropy::default();
    let all = CrossEntropy {
        label_smoothing: 0.1,
        z_loss: 1e-4,
        softcap: Some(30.0),
        normalizer: Normalizer::None,
        ..plain
    };
    for op in [plain, all] {
        for (rows, cols) in [(3, 5), (4, 1000), (5, 50257), (1, 131072), (1100, 17)] {
            for scale in [0.1, 5.0] {
                run::<f32>(&gpu, &op, rows, cols, scale);
                run::<bf16>(&gpu, &op, rows, cols, scale);
                run::<f16>(&gpu, &op, rows, cols, scale);
            }
        }
    }
}
