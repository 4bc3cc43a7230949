//! The loss and its gradient, with every option and every kind of tensor, compared with the f64 reference, finite
//! differences and candle's own composition.

mod common;

use candle_core::{DType, Device, Tensor, WithDType};
use common::{bits, close, composed, f64s, numbers, refused, tensor, var};
use xact::half::{bf16, f16};
use xact::loss::cross_entropy::RowStatus;
use xact::{CrossEntropy, Goldfish, Normalizer, Strategy, reference};
use xact_candle::{DeviceGoldfish, Outputs, Reduction, Tokens, cross_entropy};

trait Float: xact::Element + WithDType {}
impl Float for f32 {}
impl Float for f16 {}
impl Float for bf16 {}

fn i64s(values: &[i64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn gradient(loss: &Tensor, of: &Tensor) -> Tensor {
    let store = loss.backward().unwrap();
    store.get(of).expect("a gradient").clone()
}

/// The optional arguments of a case.
#[derive(Clone, Default)]
struct Rows {
    labels: Vec<i64>,
    weights: Option<Vec<f32>>,
    goldfish: Option<Goldfish>,
    normalizer: Option<f32>,
}

impl Rows {
    fn random(n: usize, classes: usize) -> Rows {
        let labels = numbers(5, n, 1.0);
        let labels = labels
            .iter()
            .map(|&u| ((u + 1.0) / 2.0 * classes as f32) as i64);
        Rows {
            labels: labels.map(|label| label.min(classes as i64 - 1)).collect(),
            ..Rows::default()
        }
    }

    fn keep(&self) -> Vec<bool> {
        match &self.goldfish {
            Some(goldfish) => goldfish.keep(&xact::Tokens::row(&self.labels)).unwrap(),
            None => vec![true; self.labels.len()],
        }
    }

    fn run(&self, op: &CrossEntropy, logits: &Tensor, reduction: Reduction) -> Outputs {
        let labels = i64s(&self.labels);
        let weights = self.weights.as_ref();
        let weights = weights.map(|w| Tensor::new(&w[..], &Device::Cpu).unwrap());
        let goldfish = self.goldfish.as_ref();
        let goldfish = goldfish.map(|g| DeviceGoldfish::new(g, &Device::Cpu).unwrap());
        let normalizer = self
            .normalizer
            .map(|n| Tensor::new(n, &Device::Cpu).unwrap());
        let mut call = cross_entropy(op, logits, &labels).reduction(reduction);
        if let Some(weights) = &weights {
            call = call.weights(weights);
        }
        if let Some(goldfish) = &goldfish {
            call = call.goldfish(goldfish, Tokens::rows(&labels));
        }
        if let Some(normalizer) = &normalizer {
            call = call.normalizer(normalizer);
        }
        let loss = call.clone().run().unwrap();
        let outputs = call.run_with_outputs().unwrap();
        assert_eq!(bits(&loss), bits(&outputs.loss));
        outputs
    }
}

/// Panics unless loss, outputs and gradient agree with the reference. `upstream` is the gradient of the loss: one number,
/// or one for each row.
fn check<T: Float>(op: &CrossEntropy, logits: &Tensor, rows: &Rows, reduction: Reduction) {
    let n = rows.labels.len();
    let classes = op.vocab.map_or(logits.dims()[1], |vocab| vocab as usize);
    let x = var(logits);
    let outputs = rows.run(op, &x, reduction);
    let summary = outputs.summary.read().unwrap();
    let upstream: Vec<f64> = match reduction {
        Reduction::None => numbers(9, n, 2.0).into_iter().map(f64::from).collect(),
        Reduction::Mean | Reduction::Sum => vec![-1.5; n],
    };
    let scaled = match reduction {
        Reduction::None => {
            let upstream: Vec<f32> = upstream.iter().map(|&u| u as f32).collect();
            let upstream = Tensor::new(upstream, &Device::Cpu).unwrap();
            (&outputs.loss * upstream).unwrap().sum_all().unwrap()
        }
        Reduction::Mean | Reduction::Sum => (&outputs.loss * -1.5).unwrap(),
    };
    let got = gradient(&scaled, &x);
    assert_eq!((got.dims(), got.dtype()), (logits.dims(), logits.dtype()));
    let got: Vec<Vec<f64>> = got.to_dtype(DType::F64).unwrap().to_vec2().unwrap();

    let keep = rows.keep();
    let weight = |r: usize| rows.weights.as_ref().map_or(1.0, |w| w[r]);
    let status: Vec<RowStatus> = (0..n)
        .map(|r| op.row_status(rows.labels[r], weight(r), !keep[r], classes as u64))
        .collect();
    let count = |wanted: RowStatus| status.iter().filter(|&&s| s == wanted).count();
    let (kept, dropped) = (count(RowStatus::Kept), count(RowStatus::Dropped));
    assert_eq!(
        (summary.kept, summary.dropped),
        (kept as u64, dropped as u64)
    );
    let divisor = match (reduction, rows.normalizer, op.normalizer) {
        (Reduction::None | Reduction::Sum, ..) => 1.0,
        (_, Some(normalizer), _) => f64::from(normalizer),
        (.., Normalizer::Kept) => kept as f64,
        (.., Normalizer::Weight) => (0..n)
            .filter(|&r| status[r] == RowStatus::Kept)
            .map(|r| f64::from(weight(r)))
            .sum(),
        (.., Normalizer::Labels) => rows
            .labels
            .iter()
            .filter(|&&l| l != op.ignore_index)
            .count() as f64,
        _ => 1.0,
    };
    close(&[summary.normalizer.into()], &[divisor], 1e-6);

    let z: Vec<Vec<f64>> = logits.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
    let (losses, lse) = (f64s(&outputs.losses), f64s(&outputs.lse));
    let (z_loss, argmax) = (f64s(&outputs.z_loss), f64s(&outputs.argmax));
    let (mut total, mut bound) = (0.0, 0.0);
    for r in 0..n {
        if status[r] != RowStatus::Kept {
            assert_eq!(
                (losses[r], lse[r], z_loss[r], argmax[r]),
                (0.0, 0.0, 0.0, -1.0)
            );
            assert!(got[r].iter().all(|g| *g == 0.0));
            continue;
        }
        let upstream = upstream[r] / divisor;
        let target = rows.labels[r] as usize;
        let row = op.evaluate(&z[r][..classes], target, weight(r).into(), upstream);
        total += row.loss;
        bound += row.loss_bound;
        assert!(
            (losses[r] - row.loss).abs() <= row.loss_bound,
            "{op:?} loss of {r}"
        );
        assert!(
            (lse[r] - row.lse).abs() <= row.lse_bound,
            "{op:?} lse of {r}"
        );
        close(&[z_loss[r]], &[row.z_loss], 1e-5);
        assert_eq!(Some(argmax[r] as usize), row.argmax);
        for (c, got) in got[r].iter().enumerate() {
            let exact = row.dlogits.get(c).copied().unwrap_or(0.0);
            let bound = row.dlogits_bound.get(c).copied().unwrap_or(0.0);
            // The upstream gradient of the row is rounded to f32 too.
            let bound = bound + 3e-7 * exact.abs() + rounding::<T>(exact);
            let error = (got - exact).abs();
            assert!(
                error <= bound,
                "{op:?} dlogits of {r}, {c}: {got:?}, not {exact:e}"
            );
        }
    }
    let loss = f64s(&outputs.loss);
    match reduction {
        Reduction::None => assert_eq!(loss, losses),
        Reduction::Mean | Reduction::Sum => {
            let expected = total / divisor;
            let error = (loss[0] - expected).abs();
            assert!(
                error <= bound / divisor.abs() + 1e-6 * expected.abs(),
                "{op:?} {loss:?}"
            );
        }
    }
}

/// The rounding error of a 16-bit type, relative to a number.
fn rounding<T: Float>(exact: f64) -> f64 {
    if <T as xact::Element>::DTYPE.size() == 4 {
        0.0
    } else {
        0.51 * reference::ulp::<T>(exact)
    }
}

fn options() -> Vec<CrossEntropy> {
    let plain = CrossEntropy::default();
    vec![
        plain,
        plain.label_smoothing(0.1),
        plain.z_loss(1e-2),
        plain.softcap(5.0),
        plain.vocab(13),
        plain.ignore_index(3),
        plain.normalizer(Normalizer::Labels),
        plain.normalizer(Normalizer::Weight),
        plain.normalizer(Normalizer::None),
        plain
            .label_smoothing(0.05)
            .z_loss(1e-3)
            .softcap(8.0)
            .vocab(15),
    ]
}

fn every_option_is_the_reference<T: Float>() {
    let (n, columns) = (23, 17);
    let logits = tensor(1, &[n, columns], 6.0, <T as WithDType>::DTYPE);
    let goldfish = |strategy| Some(Goldfish::new(strategy).unwrap());
    for op in options() {
        let classes = op.vocab.unwrap_or(columns as u64) as usize;
        let plain = Rows::random(n, classes);
        let mut ignored = plain.clone();
        for label in ignored.labels.iter_mut().step_by(4) {
            *label = op.ignore_index;
        }
        let mut weighted = ignored.clone();
        let mut weights = numbers(3, n, 1.0);
        weights.iter_mut().for_each(|w| *w += 1.5);
        weights[2] = 0.0;
        weighted.weights = Some(weights);
        let mut hashed = weighted.clone();
        hashed.goldfish = goldfish(Strategy::Hash64 {
            k: 3,
            h: 2,
            seed: 1,
        });
        let mut static_ = plain.clone();
        static_.goldfish = goldfish(Strategy::Static { k: 4, start: 1 });
        let mut divided = hashed.clone();
        divided.normalizer = Some(37.5);
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            for rows in [&plain, &ignored, &weighted, &hashed, &static_] {
                check::<T>(&op, &logits, rows, reduction);
            }
        }
        check::<T>(&op, &logits, &divided, Reduction::Mean);
    }
}

#[test]
fn every_option_in_f32_is_the_reference() {
    every_option_is_the_reference::<f32>();
}

#[test]
fn every_option_in_16_bits_is_the_reference() {
    every_option_is_the_reference::<f16>();
    every_option_is_the_reference::<bf16>();
}

#[test]
fn widths_and_heights() {
    for n in [1, 2, 9] {
        for columns in [1, 2, 31, 1000] {
            let logits = tensor(2, &[n, columns], 3.0, DType::F32);
            check::<f32>(
                &CrossEntropy::default(),
                &logits,
                &Rows::random(n, columns),
                Reduction::Mean,
            );
        }
    }
}

#[test]
fn gradients_are_finite_differences() {
    let op = CrossEntropy::default()
        .label_smoothing(0.1)
        .z_loss(1e-2)
        .softcap(6.0);
    let (n, columns) = (3, 5);
    let values = numbers(1, n * columns, 3.0);
    let rows = Rows {
        weights: Some(vec![0.5, -1.25, 2.0]),
        ..Rows::random(n, columns)
    };
    let logits = |values: &[f32]| {
        let tensor = Tensor::from_slice(values, (n, columns), &Device::Cpu).unwrap();
        var(&tensor)
    };
    let loss = |values: &[f32]| {
        let x = logits(values);
        f64s(&rows.run(&op, &x, Reduction::None).loss)
            .iter()
            .sum::<f64>()
    };
    let x = logits(&values);
    let got = gradient(&rows.run(&op, &x, Reduction::Sum).loss, &x);
    let expected: Vec<f64> = (0..values.len())
        .map(|i| {
            let at = |step: f32| {
                let mut moved = values.clone();
                moved[i] += step;
                (loss(&moved), f64::from(moved[i]))
            };
            let ((high, b), (low, a)) = (at(0.02), at(-0.02));
            (high - low) / (b - a)
        })
        .collect();
    close(&f64s(&got), &expected, 1e-3);
}

/// candle's cross-entropy, and a composition in f64.
#[test]
fn gradients_are_those_of_candles_composition() {
    let logits = tensor(1, &[19, 101], 4.0, DType::F32);
    let labels = Rows::random(19, 101).labels;
    let labels = i64s(&labels).to_dtype(DType::U32).unwrap();
    let x = var(&logits);
    let ours = cross_entropy(&CrossEntropy::default(), &x, &labels)
        .run()
        .unwrap();
    let dx = gradient(&ours, &x);
    let theirs = candle_nn::loss::cross_entropy(&x, &labels).unwrap();
    close(&f64s(&ours), &f64s(&theirs), 1e-6);
    close(&f64s(&dx), &f64s(&gradient(&theirs, &x)), 1e-5);
    let x = var(&logits.to_dtype(DType::F64).unwrap());
    let exact = composed::cross_entropy(&x, &labels).unwrap();
    close(&f64s(&ours), &f64s(&exact), 1e-6);
    close(&f64s(&dx), &f64s(&gradient(&exact, &x)), 1e-6);
}

/// Every kind of view, also of labels, weights and tokens.
#[test]
fn views_are_as_their_copies() {
    let (b, s, v) = (3, 5, 12);
    let goldfish = Goldfish::new(Strategy::Hash64 {
        k: 3,
        h: 2,
        seed: 0,
    })
    .unwrap();
    let goldfish = DeviceGoldfish::new(&goldfish, &Device::Cpu).unwrap();
    let ids = i64s(&Rows::random(20 * 20, 4).labels);
    let ids = ids.reshape((20, 20)).unwrap();
    let weights = tensor(4, &[20, 20], 1.0, DType::F32);
    for dtype in [DType::F32, DType::BF16] {
        let base = var(&tensor(3, &[b, s, v], 4.0, dtype));
        let narrow = |dim, start, len| base.narrow(dim, start, len).unwrap();
        let views = [
            ("shifted", narrow(1, 0, s - 1)),
            (
                "shifted, of fewer columns",
                narrow(1, 0, s - 1).narrow(2, 2, 8).unwrap(),
            ),
            ("columns", narrow(2, 0, 7)),
            ("offset columns", narrow(2, 4, 8)),
            ("later rows", narrow(0, 1, 2)),
            ("turned outside", base.transpose(0, 1).unwrap()),
            (
                "transposed",
                base.transpose(1, 2).unwrap().narrow(2, 0, 4).unwrap(),
            ),
            (
                "one row for all",
                narrow(1, 2, 1).broadcast_as((b, 4, v)).unwrap(),
            ),
            ("no rows", narrow(1, 2, 0)),
            ("whole", base.as_tensor().clone()),
        ];
        for (name, view) in views {
            let dims = &view.dims()[..2];
            // The tensors are views.
            let cut = |tensor: &Tensor| {
                let tensor = tensor.narrow(0, 1, dims[0]).unwrap();
                tensor.narrow(1, 2, dims[1]).unwrap()
            };
            let (labels, weights) = (cut(&ids), cut(&weights.t().unwrap()));
            assert_eq!((labels.dims(), weights.dims()), (dims, dims), "{name}");
            let copies = [&labels, &weights].map(|t| t.contiguous().unwrap().copy().unwrap());
            let copy = var(&view.contiguous().unwrap().copy().unwrap());
            let op = CrossEntropy::default().z_loss(1e-3);
            let tokens = Tokens::rows(&labels);
            let ours = cross_entropy(&op, &view, &labels)
                .weights(&weights)
                .goldfish(&goldfish, tokens)
                .run_with_outputs()
                .unwrap();
            let expected = cross_entropy(&op, &copy, &copies[0])
                .weights(&copies[1])
                .goldfish(&goldfish, Tokens::rows(&copies[0]))
                .run_with_outputs()
                .unwrap();
            assert_eq!(bits(&ours.losses), bits(&expected.losses), "{name}");
            assert_eq!(ours.losses.dims(), dims);
            assert_eq!(bits(&ours.loss), bits(&expected.loss), "{name}");
            let got = gradient(&ours.loss, &base);
            let expected = gradient(&expected.loss, &copy).detach();
            let scattered = (&view * expected).unwrap().sum_all().unwrap();
            assert_eq!(bits(&got), bits(&gradient(&scattered, &base)), "{name}");
        }
    }
}

/// The strategies, documents, halos and exempt ids give the decisions of the reference.
#[test]
fn goldfish_drops_what_its_reference_drops() {
    let (b, s) = (4, 16);
    let ids = Rows::random(b * s, 9).labels;
    let logits = var(&tensor(1, &[b, s, 9], 3.0, DType::F32));
    let op = CrossEntropy::default().dropped_loss(true);
    let offsets = [0_i32, 5, 5, 40, 64];
    let (halo, exempt) = (Rows::random(b * 3, 9).labels, [2_i64, 7]);
    let preceding = [0_i64, 3, 2, 90];
    for strategy in [
        Strategy::Static { k: 3, start: 1 },
        Strategy::Random { k: 3, seed: 5 },
        Strategy::ProductTable { k: 3, h: 4 },
        Strategy::ProductAvalanche { k: 3, h: 4 },
        Strategy::DotTable { k: 3, h: 4 },
        Strategy::Hash64 {
            k: 3,
            h: 4,
            seed: 2,
        },
    ] {
        let goldfish = Goldfish::new(strategy).unwrap();
        let on_device = DeviceGoldfish::new(&goldfish, &Device::Cpu).unwrap();
        for id_dtype in [DType::U8, DType::U32, DType::I32, DType::I64] {
            let of = |values: &[i64], dims: &[usize]| {
                let tensor = Tensor::from_slice(values, dims, &Device::Cpu).unwrap();
                tensor.to_dtype(id_dtype).unwrap()
            };
            let tensor = of(&ids, &[b, s]);
            let exempt_ids = i64s(&exempt);
            let cu_seqlens = Tensor::new(&offsets, &Device::Cpu).unwrap();
            let columns = of(&ids, &[s, b]);
            let preceding_labels = i64s(&preceding);
            for (tokens, reference) in [
                (Tokens::rows(&tensor), xact::Tokens::rows(&ids, s)),
                (
                    Tokens::rows(&tensor)
                        .halo(&of(&halo, &[b, 3]))
                        .exempt(&exempt_ids),
                    xact::Tokens::rows(&ids, s).halo(&halo).exempt(&exempt),
                ),
                (
                    Tokens::documents(&tensor, &cu_seqlens),
                    xact::Tokens::documents(&ids, &offsets),
                ),
                (
                    Tokens::chunks(&tensor, &cu_seqlens, &preceding_labels)
                        .halo(&of(&halo, &[b, 3])),
                    xact::Tokens::chunks(&ids, &offsets, &preceding).halo(&halo),
                ),
                (
                    Tokens::rows(&columns).seq_first().halo(&of(&halo, &[b, 3])),
                    xact::Tokens::rows(&ids, s).halo(&halo).interleaved(b),
                ),
            ] {
                let labels = of(&ids, &[b, s]);
                // Labels may have another type than ids, but not u8.
                let labels = if id_dtype == DType::U8 {
                    labels.to_dtype(DType::I64).unwrap()
                } else {
                    labels
                };
                let outputs = cross_entropy(&op, &logits, &labels)
                    .goldfish(&on_device, tokens)
                    .run_with_outputs()
                    .unwrap();
                let keep = goldfish.keep(&reference).unwrap();
                let losses = f64s(&outputs.losses);
                let got: Vec<bool> = losses.iter().map(|&loss| loss != 0.0).collect();
                assert_eq!(got, keep, "{strategy:?}");
                let summary = outputs.summary.read().unwrap();
                let dropped = keep.iter().filter(|&&keep| !keep).count() as u64;
                assert_eq!(summary.dropped, dropped);
                assert!((summary.dropped_loss > 0.0) == (dropped > 0));
                let rows: Vec<Vec<f32>> = gradient(&outputs.loss, &logits)
                    .flatten(0, 1)
                    .unwrap()
                    .to_vec2()
                    .unwrap();
                for (row, keep) in rows.iter().zip(keep) {
                    assert_eq!(row.iter().any(|&g| g != 0.0), keep);
                }
            }
        }
    }
}

/// Labels of every type; u32 ones are never negative.
#[test]
fn labels_of_every_type() {
    let logits = var(&tensor(1, &[3, 4], 3.0, DType::F32));
    let op = CrossEntropy::default();
    let run = |labels: &Tensor| {
        cross_entropy(&op, &logits, labels)
            .run_with_outputs()
            .unwrap()
    };
    let signed = i64s(&[2, -100, 0]);
    let expected = run(&signed);
    let other = run(&signed.to_dtype(DType::I32).unwrap());
    assert_eq!(bits(&expected.losses), bits(&other.losses));
    assert_eq!(expected.summary.read().unwrap().kept, 2);
    let unsigned = Tensor::new(&[2_u32, 1, 0], &Device::Cpu).unwrap();
    let losses = f64s(&run(&unsigned).losses);
    assert_eq!(losses[0], f64s(&expected.losses)[0]);
    let minus_100 = Tensor::new(&[2_u32, 4_294_967_196, 0], &Device::Cpu).unwrap();
    let outputs = run(&minus_100);
    assert_eq!(outputs.summary.read().unwrap().bad_row, 1);
    assert!(f64s(&outputs.losses)[1].is_nan());
}

/// A label that is no class gives NaN only in its own row, and is reported.
#[test]
fn bad_labels_are_reported_and_stay_in_their_row() {
    for bad in [4, -1, i64::MAX, i64::MIN] {
        let logits = var(&tensor(1, &[3, 4], 3.0, DType::F32));
        let labels = i64s(&[2, bad, 0]);
        let op = CrossEntropy::default();
        let call = cross_entropy(&op, &logits, &labels).reduction(Reduction::None);
        let outputs = call.run_with_outputs().unwrap();
        let summary = outputs.summary.read().unwrap();
        assert_eq!((summary.bad_row, summary.nan_row), (1, u64::MAX), "{bad}");
        let losses = f64s(&outputs.loss);
        assert!(losses[1].is_nan() && losses[0] > 0.0 && losses[2] > 0.0);
        let store = outputs.loss.backward().unwrap();
        let rows = store.get(&logits).unwrap().to_vec2::<f32>().unwrap();
        assert!(rows[1].iter().all(|g| g.is_nan()));
        assert!(rows[0].iter().chain(&rows[2]).all(|g| g.is_finite()));
    }
}

/// No rows, and no kept row.
#[test]
fn nothing_to_lose() {
    let op = CrossEntropy::default();
    for dims in [&[0, 7][..], &[2, 0, 7]] {
        let logits = var(&Tensor::zeros(dims, DType::F16, &Device::Cpu).unwrap());
        let labels = Tensor::zeros(&dims[..dims.len() - 1], DType::I64, &Device::Cpu).unwrap();
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::None] {
            let call = cross_entropy(&op, &logits, &labels).reduction(reduction);
            let loss = call.run().unwrap().sum_all().unwrap();
            assert_eq!(f64s(&loss), [0.0]);
            assert_eq!(gradient(&loss, &logits).dims(), dims);
        }
        let nan = op.empty_is_nan(true);
        let loss = cross_entropy(&nan, &logits, &labels).run().unwrap();
        assert!(f64s(&loss)[0].is_nan());
    }
    let logits = var(&tensor(1, &[2, 4], 3.0, DType::F32));
    let loss = cross_entropy(&op, &logits, &i64s(&[-100, -100]))
        .run()
        .unwrap();
    assert_eq!(f64s(&loss), [0.0]);
    assert_eq!(f64s(&gradient(&loss, &logits)), [0.0; 8]);
    // Logits of one dimension are one row.
    let line = var(&tensor(1, &[4], 3.0, DType::F32));
    let label = Tensor::new(2_i64, &Device::Cpu).unwrap();
    let loss = cross_entropy(&op, &line, &label)
        .reduction(Reduction::None)
        .run()
        .unwrap();
    assert_eq!(loss.rank(), 0);
    assert_eq!(gradient(&loss, &line).dims(), [4]);
}

/// Several uses of a loss, several uses of a variable, and tensors that are not tracked.
#[test]
fn the_graph_is_candles() {
    let logits = var(&tensor(1, &[4, 6], 3.0, DType::F32));
    let labels = i64s(&[0, 5, 2, 3]);
    let op = CrossEntropy::default();
    let run = |x: &Tensor| cross_entropy(&op, x, &labels).run().unwrap();
    let loss = run(&logits);
    let once = gradient(&loss, &logits);
    assert_eq!(bits(&once), bits(&gradient(&loss, &logits)));
    let twice = gradient(&((&loss * 3.0).unwrap() + &loss).unwrap(), &logits);
    close(&f64s(&twice), &f64s(&(&once * 4.0).unwrap()), 1e-6);
    let again = gradient(&(run(&logits) + run(&logits)).unwrap(), &logits);
    close(&f64s(&again), &f64s(&(&once * 2.0).unwrap()), 1e-6);
    let through = gradient(&run(&logits.affine(2.0, 1.0).unwrap()), &logits);
    assert_eq!(through.dims(), [4, 6]);

    let fixed = logits.detach();
    let outputs = cross_entropy(&op, &fixed, &labels)
        .run_with_outputs()
        .unwrap();
    assert!(!outputs.loss.track_op());
    assert_eq!(bits(&outputs.loss), bits(&loss));
    let outputs = cross_entropy(&op, &logits, &labels)
        .run_with_outputs()
        .unwrap();
    for output in [
        &outputs.losses,
        &outputs.lse,
        &outputs.z_loss,
        &outputs.argmax,
    ] {
        assert!(!output.track_op());
    }
    assert_eq!(outputs.summary.words().dims(), [18]);
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let logits = tensor(1, &[4, 6], 3.0, DType::F32);
    let labels = i64s(&[0, 5, 2, 3]);
    let op = CrossEntropy::default();
    let to = |tensor: &Tensor, dtype| tensor.to_dtype(dtype).unwrap();
    let run = |logits: &Tensor, labels: &Tensor| cross_entropy(&op, logits, labels).run();
    refused(run(&to(&logits, DType::F64), &labels), "logits is f64");
    refused(run(&logits, &to(&labels, DType::F32)), "labels is f32");
    refused(run(&logits, &to(&labels, DType::U8)), "labels is u8");
    refused(
        run(&logits, &i64s(&[1, 2])),
        "labels is [2]; it must be [4]",
    );
    refused(
        run(&logits, &labels.reshape((4, 1)).unwrap()),
        "it must be [4]",
    );
    refused(
        run(&logits.sum_all().unwrap(), &labels),
        "logits are a scalar",
    );
    let none = logits.narrow(1, 0, 0).unwrap();
    refused(run(&none, &labels), "the number of classes must be in");
    let call = || cross_entropy(&op, &logits, &labels);
    refused(
        call().weights(&to(&labels, DType::F64)).run(),
        "weights is f64",
    );
    refused(call().weights(&logits).run(), "weights is [4, 6]");
    refused(call().normalizer(&logits).run(), "must have one element");
    refused(
        call().normalizer(&to(&labels, DType::F64)).run(),
        "the normalizer is f64",
    );
    let one = Tensor::new(1_f32, &Device::Cpu).unwrap();
    for reduction in [Reduction::Sum, Reduction::None] {
        refused(
            call().normalizer(&one).reduction(reduction).run(),
            "only the mean is divided",
        );
    }
    for op in [
        op.label_smoothing(1.0),
        op.z_loss(-1.0),
        op.softcap(0.0),
        op.z_loss(f32::NAN),
    ] {
        refused(cross_entropy(&op, &logits, &labels).run(), "it must be in");
    }
    let wide = op.vocab(7);
    refused(
        cross_entropy(&wide, &logits, &labels).run(),
        "6 elements, 7 are needed",
    );
    let goldfish = Goldfish::new(Strategy::Hash64 {
        k: 3,
        h: 2,
        seed: 0,
    })
    .unwrap();
    let goldfish = DeviceGoldfish::new(&goldfish, &Device::Cpu).unwrap();
    let with = |tokens| call().goldfish(&goldfish, tokens).run();
    refused(with(Tokens::rows(&i64s(&[1, 2, 3]))), "elements");
    refused(with(Tokens::rows(&logits)), "the ids of the tokens is f32");
    refused(
        with(Tokens::documents(&labels, &labels)),
        "cu_seqlens is i64",
    );
    let chunks = Tensor::new(&[0_i32, 4], &Device::Cpu).unwrap();
    refused(
        with(Tokens::chunks(&labels, &chunks, &chunks)),
        "preceding is i32",
    );
    refused(
        with(Tokens::chunks(&labels, &chunks, &i64s(&[-1]))),
        "preceding is -1",
    );
    let falling = Tensor::new(&[3_i32, 1], &Device::Cpu).unwrap();
    refused(
        with(Tokens::documents(&labels, &falling)),
        "must not decrease",
    );
    let short = Tensor::new(&[3_i64], &Device::Cpu).unwrap();
    refused(
        with(Tokens::rows(&labels.reshape((2, 2)).unwrap()).halo(&short)),
        "halo",
    );
    refused(
        with(Tokens::rows(&labels).exempt(&to(&labels, DType::U32))),
        "the exempt ids is u32",
    );
}
