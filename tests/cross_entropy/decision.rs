//! The cross-entropy kernels, with a warp per row, make the same decisions as the mask kernel, with a thread per label.

use libtest_mimic::Failed;
use xact::cuda::cross_entropy;
use xact::cuda::goldfish::DeviceTokens;
use xact::loss::goldfish::Tokens;
use xact::{CrossEntropy, Goldfish};
use xact_dev::choose::Gpu;
use xact_dev::inputs::Random;
use xact_dev::strategy;

const ROWS: usize = 240;
const CLASSES: usize = 8;

/// Windows of any length, documents, halos and exempt ids.
pub fn drops_what_the_reference_drops(gpu: &Gpu, _full: bool) -> Result<(), Failed> {
    let mut random = Random(5);
    let mut queue = gpu.queue()?;
    let op = CrossEntropy::default();
    // Few different ids, so that exempt ones occur; some negative, some beyond 32 bits.
    let ids: Vec<i64> = (0..ROWS)
        .map(|_| (random.bits() % 90) as i64 * 0x0123_4567_89ab - 7)
        .collect();
    let halo: Vec<i64> = (0..20).map(|_| random.bits() as i64).collect();
    // More exempt ids than a warp has lanes, with those that occur at the end.
    let exempt: Vec<i64> = (1000..1050).chain(ids[..9].iter().copied()).collect();
    let cu_seqlens = [-3, 70, 71, 200];
    let (chunks, preceding) = ([2, 70, 71, 200, 230], [60i64, 1, 0, 4]);
    let upload = |values: &[i64]| gpu.stream.clone_htod(values).unwrap();
    let labels: Vec<i64> = (0..ROWS).map(|i| (i % CLASSES) as i64).collect();
    let logits = gpu
        .stream
        .clone_htod(&vec![0.5f32; ROWS * CLASSES])
        .unwrap();
    let (labels, ids_there, halo_there) = (upload(&labels), upload(&ids), upload(&halo));
    let exempt_there = upload(&exempt);
    let offsets = gpu.stream.clone_htod(&cu_seqlens).unwrap();
    let chunks_there = gpu.stream.clone_htod(&chunks).unwrap();
    let preceding_there = upload(&preceding);
    for h in [1, 13, 31, 32, 33, 50, 64, 70] {
        // The first two strategies have no window.
        let without_window = if h == 1 { 0 } else { 2 };
        for strategy in strategy::all(2, h, 1, 3).into_iter().skip(without_window) {
            let goldfish = Goldfish::new(strategy).unwrap();
            let uploaded = goldfish.upload(&queue).unwrap();
            for layout in 0..5 {
                let (tokens, tokens_there) = match layout {
                    0 => (
                        Tokens::documents(&ids, &cu_seqlens),
                        DeviceTokens::documents(&ids_there, &offsets),
                    ),
                    1 => (
                        Tokens::chunks(&ids, &chunks, &preceding),
                        DeviceTokens::chunks(&ids_there, &chunks_there, &preceding_there),
                    ),
                    2 => (
                        Tokens::chunks(&ids, &chunks, &preceding).interleaved(3),
                        DeviceTokens::chunks(&ids_there, &chunks_there, &preceding_there)
                            .interleaved(3),
                    ),
                    3 => (
                        Tokens::rows(&ids, ROWS / 2).interleaved(2),
                        DeviceTokens::rows(&ids_there, ROWS / 2).interleaved(2),
                    ),
                    _ => (
                        Tokens::rows(&ids, ROWS / 2),
                        DeviceTokens::rows(&ids_there, ROWS / 2),
                    ),
                };
                let expected = goldfish.keep(&tokens.halo(&halo).exempt(&exempt));
                let mut loss = gpu.stream.clone_htod(&[7f32; ROWS]).unwrap();
                let mut summary = gpu.stream.clone_htod(&[Default::default()]).unwrap();
                let tokens = tokens_there.halo(&halo_there).exempt(&exempt_there);
                cross_entropy::forward(&op, &logits, &labels, &mut summary)
                    .goldfish(&uploaded, tokens)
                    .loss(&mut loss)
                    .launch(&mut queue)
                    .unwrap();
                // A kept row has the loss log 8.
                let loss = gpu.stream.clone_dtoh(&loss).unwrap();
                let kept: Vec<bool> = loss.iter().map(|&loss| loss != 0.0).collect();
                assert_eq!(kept, expected.unwrap(), "{strategy:?}, {layout}");
            }
        }
    }
    Ok(())
}
