//! Trains embeddings and a head on the bytes of this file, on the CPU: each byte predicts the next one. Goldfish drops a
//! quarter of the labels, whose rows are never multiplied.
//!
//! `cargo run --release --no-default-features --features rayon --example head`

use xact::cpu::{kept_rows, linear_cross_entropy};
use xact::{CrossEntropy, Goldfish, LinearCrossEntropy, Strategy, Tokens};

const CLASSES: usize = 256;
const COLS: usize = 32;
const STEPS: usize = 200;
const RATE: f32 = 4.0;

fn main() -> xact::Result<()> {
    let text = include_bytes!("head.rs");
    let labels: Vec<i32> = text[1..].iter().map(|&byte| byte.into()).collect();

    // The mask depends on the text alone, so the rows are listed before any step.
    let goldfish = Goldfish::new(Strategy::Hash64 {
        k: 4,
        h: 13,
        seed: 0,
    })?;
    let rows = kept_rows(&CrossEntropy::default(), &labels)
        .goldfish(&goldfish, Tokens::row(&labels))
        .run()?;
    println!("{} of {} labels are kept", rows.len(), labels.len());

    let noise = |i: usize| ((i * 2_654_435_761) % 1009) as f32 / 1009.0 - 0.5;
    let mut embeddings: Vec<f32> = (0..CLASSES * COLS).map(noise).collect();
    let mut weight: Vec<f32> = (0..CLASSES * COLS).map(|i| noise(i + 7)).collect();
    let op = LinearCrossEntropy::default().max_bytes(64 << 20);
    let mut first = None;
    let mut last = 0.0;
    for step in 0..STEPS {
        let of = |byte: u8| &embeddings[usize::from(byte) * COLS..][..COLS];
        let hidden: Vec<f32> = text[..labels.len()]
            .iter()
            .flat_map(|&byte| of(byte))
            .copied()
            .collect();
        let (mut d_hidden, mut d_weight) = (vec![0.0; hidden.len()], vec![0.0_f32; weight.len()]);
        let summary = linear_cross_entropy::forward_with_gradient(&op, &hidden, &weight, &labels)
            .kept_rows(&rows)
            .d_hidden(&mut d_hidden)
            .d_weight(&mut d_weight)
            .run()?;
        if step % 40 == 0 {
            println!("step {step}: loss {:.3}", summary.mean);
        }
        first.get_or_insert(summary.mean);
        last = summary.mean;
        for (w, d) in weight.iter_mut().zip(&d_weight) {
            *w -= RATE * d;
        }
        for (&byte, d) in text.iter().zip(d_hidden.chunks(COLS)) {
            let embedding = &mut embeddings[usize::from(byte) * COLS..][..COLS];
            for (e, d) in embedding.iter_mut().zip(d) {
                *e -= RATE * d;
            }
        }
    }
    assert!(
        first.is_some_and(|first| last < first / 2.0),
        "the loss did not fall"
    );
    Ok(())
}
