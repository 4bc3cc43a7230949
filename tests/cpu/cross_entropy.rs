//! Cross-entropy: accuracy over shapes and options, both ways to the gradient, special values,
//! ranks, Goldfish; the same bits in every instruction set and on any number of threads; bad input.

use std::fmt::Display;

use super::{Outcome, Table};
use half::{bf16, f16};
use libtest_mimic::Failed;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use xact::cpu::InstructionSet;
use xact::cpu::cross_entropy as ce;
use xact::cpu::{Input, Output};
use xact::loss::goldfish::Tokens;
use xact::{CrossEntropy, Element, Error, Goldfish, Normalizer, Rows, Shard, Strategy as Drops};
use xact_dev::inputs::Random;
use xact_dev::loss_cases::{
    any_call, batch, check_golden, check_masked_golden, everything, options, special_rows,
};
use xact_dev::loss_check::{Batch, Results, check, expected, same, within};
use xact_dev::loss_cpu::{self, How};
use xact_dev::same::bits;

/// Its trials.
pub(crate) fn add_to(table: &mut Table) {
    let mut table = Prefixed(table);
    table.of_type::<f32>();
    table.of_type::<f16>();
    table.of_type::<bf16>();
    table.add("confident_rows", confident_rows);
    table.add("masked_golden", || {
        Ok(check_masked_golden(|op, batch| {
            checked(op, batch, How::default()).map_err(|e| format!("{e:?}"))
        })?)
    });
    table.add("given_normalizer", given_normalizer);
    table.add("rows_in_groups", rows_in_groups::<f32>);
    table.add("rows_in_groups_bf16", rows_in_groups::<bf16>);
    table.add("errors", errors);
}

/// Puts the name of the op before that of a trial.
struct Prefixed<'a>(&'a mut Table);

impl Prefixed<'_> {
    fn add(&mut self, name: impl Display, test: impl FnOnce() -> Outcome + Send + 'static) {
        self.0.add(format!("cross_entropy::{name}"), test);
    }

    fn of_type<T: Element>(&mut self) {
        for (name, op) in options() {
            let name = |what: &str| format!("{what}::{name}::{}", T::DTYPE);
            self.add(name("accuracy"), move || accuracy::<T>(&op));
            self.add(name("same_bits"), move || same_bits::<T>(&op));
        }
        macro_rules! tests {
            ($($name:ident),+ $(,)?) => {$(
                self.add(format!("{}::{}", stringify!($name), T::DTYPE), $name::<T>);
            )+};
        }
        tests![
            vocabularies,
            any_shape_and_options,
            golden,
            large_common_offsets,
            special_values,
            columns_that_are_no_classes,
            rows_that_do_not_count,
            bad_labels,
            weights_of_any_value,
            upstream_gradients,
            normalizers,
            no_rows_and_no_columns,
            the_first_of_equal_logits,
            ranks,
            goldfish,
        ];
    }
}

fn full() -> bool {
    std::env::var("XACT_FULL").is_ok_and(|v| v == "1")
}

fn fail<R>(message: String) -> Result<R, Failed> {
    Err(message.into())
}

/// Both ways to the gradient, which give the same bits.
fn both<T: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    how: How<'_>,
) -> Result<Results<T>, Failed> {
    let two = loss_cpu::forward_backward(op, batch, how)?;
    let one = loss_cpu::with_gradient(op, batch, how)?;
    same("in one call", &one, &two)?;
    Ok(two)
}

/// Runs both ways and holds them against the reference.
fn checked<T: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    how: How<'_>,
) -> Result<Results<T>, Failed> {
    let got = both(op, batch, how)?;
    let reference = expected(op, batch, &[]);
    within((op, how), check(op, batch, &reference, &got))?;
    Ok(got)
}

/// Loss, lse and gradients are inside their bounds.
fn accuracy<T: Element>(op: &CrossEntropy) -> Outcome {
    let mut shapes = vec![(8, 3), (9, 100), (8, 2500)];
    if full() {
        shapes.extend([(1, 1), (8, 2), (1030, 17), (8, 50_257), (3, 131_072)]);
    }
    for (rows, cols) in shapes {
        for scale in [1.0, 5.0, 0.1, 20.0] {
            let mut batch = batch::<T>(cols as u64, rows, cols, cols, scale);
            batch.weights = Some((0..rows).map(|r| 1.0 + r as f32 / 8.0).collect());
            checked(op, &batch, How::default())?;
        }
    }
    Ok(())
}

/// The same bits in every instruction set and on pools of several sizes, with every special value, in rows that
/// threads share.
fn same_bits<T: Element>(op: &CrossEntropy) -> Outcome {
    let (special, _) = special_rows::<T>();
    let mut long = batch::<T>(1, 5, 40_011, 40_011, 4.0);
    long.labels[1] = -100;
    long.labels[2] = -1;
    for batch in [special, long] {
        let results = || loss_cpu::forward_backward(op, &batch, How::default());
        let first = results()?;
        for set in InstructionSet::available() {
            same(set.name(), &set.force(results)?, &first)?;
        }
        #[cfg(feature = "rayon")]
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()?;
            same(
                &format!("{threads} threads"),
                &pool.install(results)?,
                &first,
            )?;
        }
    }
    Ok(())
}

/// Rows of real and of unlucky length, with gaps.
fn vocabularies<T: Element>() -> Outcome {
    let op = CrossEntropy::default().label_smoothing(0.05);
    let long: &[usize] = if full() || T::DTYPE == xact::Dtype::Bf16 {
        &[50_257, 131_071, 131_073]
    } else {
        &[50_257]
    };
    let short = [1, 7, 15, 16, 17, 255, 256, 257, 511, 512, 513];
    for &cols in short.iter().chain(long) {
        let batch = batch::<T>(5, 2, cols, cols, 2.0);
        let how = How {
            gaps: [3, 2],
            ..How::default()
        };
        checked(&op, &batch, how)?;
    }
    Ok(())
}

/// Anything together: shapes, gaps, label types, options, weights, upstream gradients, outputs.
fn any_shape_and_options<T: Element>() -> Outcome {
    let config = Config {
        cases: if full() { 3000 } else { 150 },
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let how = ([0..4usize, 0..4usize], any::<[bool; 3]>());
    let mut runner = TestRunner::new_with_rng(config, rng);
    let run = runner.run(&(any_call(3000, 0..4), how), |(call, how)| {
        let (op, batch) = (call.op, call.batch::<T>());
        let (gaps, [in_place, narrow, all_outputs]) = how;
        let how = How {
            gaps,
            in_place,
            narrow,
            ..How::default()
        };
        let failed = |e: Failed| TestCaseError::fail(format!("{e:?}"));
        let got = checked(&op, &batch, how).map_err(failed)?;
        if !all_outputs {
            let how = How { all_outputs, ..how };
            let fewer = both(&op, &batch, how).map_err(failed)?;
            prop_assert!(bits(&fewer.dlogits) == bits(&got.dlogits));
            let losses = [&fewer, &got].map(|results| results.summary.loss.to_bits());
            prop_assert_eq!(losses[0], losses[1], "without outputs");
        }
        Ok(())
    });
    run.map_err(|e| e.to_string().into())
}

fn golden<T: Element>() -> Outcome {
    check_golden::<T>(|op, batch| both(op, batch, How::default()).map_err(|e| format!("{e:?}")))?;
    Ok(())
}

/// A constant added to all logits of a row costs the loss and the gradient no digits.
fn large_common_offsets<T: Element>() -> Outcome {
    for offset in [1e4, -1e4, 3e4, -6e4] {
        let mut batch = batch::<T>(3, 8, 300, 300, 3.0);
        for z in &mut batch.logits {
            *z = T::from_f64(z.to_f64() + offset);
        }
        for (_, op) in options().into_iter().filter(|(_, op)| op.softcap.is_none()) {
            checked(&op, &batch, How::default())?;
        }
    }
    Ok(())
}

/// −inf, +inf and NaN among logits, rows of nothing but −inf, one-hot rows.
fn special_values<T: Element>() -> Outcome {
    let (batch, caps) = special_rows::<T>();
    for op in options().into_iter().map(|(_, op)| op).chain(caps) {
        checked(&op, &batch, How::default())?;
    }
    Ok(())
}

/// Columns beyond the classes hold anything: nothing of it is seen, and their gradient is 0.
fn columns_that_are_no_classes<T: Element>() -> Outcome {
    for (rows, cols, classes) in [(3, 8, 7), (2, 64, 50), (2, 5000, 4097), (2, 9000, 3)] {
        for junk in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30, -1e30] {
            let mut batch = batch::<T>(1, rows, cols, classes, 2.0);
            batch.labels[1] = classes as i64;
            for row in batch.logits.chunks_mut(cols) {
                row[classes..].fill(T::from_f64(junk));
            }
            for op in [CrossEntropy::default(), everything()] {
                let op = op.vocab(classes as u64);
                checked(&op, &batch, How::default())?;
            }
        }
    }
    Ok(())
}

/// All rows ignored, one valid, all of weight 0: gradients are exactly 0, the mean 0 or NaN as was asked.
fn rows_that_do_not_count<T: Element>() -> Outcome {
    let (rows, cols) = (6, 70);
    for ignore_index in [-100, -1, 0, 5, i64::from(i32::MIN)] {
        for empty_is_nan in [false, true] {
            for normalizer in [
                Normalizer::None,
                Normalizer::Kept,
                Normalizer::Labels,
                Normalizer::Weight,
            ] {
                let op = CrossEntropy::default()
                    .ignore_index(ignore_index)
                    .empty_is_nan(empty_is_nan)
                    .normalizer(normalizer);
                let mut batch = batch::<T>(2, rows, cols, cols, 2.0);
                // What is not read may be anything.
                batch.logits.fill(T::from_f64(f64::NAN));
                batch.labels.fill(ignore_index);
                let how = How {
                    narrow: true,
                    ..How::default()
                };
                checked(&op, &batch, how)?;
                batch.labels.fill(7);
                batch.weights = Some(vec![0.0, -0.0, 0.0, 0.0, 0.0, 0.0]);
                checked(&op, &batch, how)?;
                batch.labels[4] = 3;
                batch.weights = Some(vec![0.0, 0.0, 0.0, 0.0, 2.0, 0.0]);
                let valid = Random(1).normal(cols, 1.0);
                batch.logits[4 * cols..5 * cols].copy_from_slice(&valid);
                checked(&op, &batch, how)?;
            }
        }
    }
    Ok(())
}

/// A label that is no class makes its own row NaN and is reported; the others are what they are without it.
fn bad_labels<T: Element>() -> Outcome {
    let (rows, cols) = (7, 40);
    let wide = [i64::MAX, i64::MIN, 1 << 32, (1 << 32) + 3, -(1 << 32) + 3];
    for label in [40, 41, -1, -101, i64::from(i32::MAX)]
        .into_iter()
        .chain(wide)
    {
        for op in [CrossEntropy::default(), everything()] {
            // A count of kept rows would change the others' gradients.
            let op = op.normalizer(Normalizer::None);
            let mut batch = batch::<T>(4, rows, cols, cols, 2.0);
            let good = both(&op, &batch, How::default())?;
            for r in [5, 2] {
                batch.labels[r] = label;
            }
            let got = checked(&op, &batch, How::default())?;
            assert_eq!(got.summary.bad_row, 2);
            for r in (0..rows).filter(|r| ![2, 5].contains(r)) {
                let of = |x: &Results<T>| bits(&x.dlogits[r * cols..][..cols]).to_vec();
                if of(&got) != of(&good) || got.loss[r].to_bits() != good.loss[r].to_bits() {
                    return fail(format!("label {label} changed row {r}"));
                }
            }
        }
    }
    Ok(())
}

/// Weights are any numbers: negative ones are taken as they are, a NaN makes its own row NaN.
fn weights_of_any_value<T: Element>() -> Outcome {
    let weights = [
        -2.5,
        f32::NAN,
        1e-30,
        1e30,
        0.0,
        -0.0,
        1.0,
        f32::MIN_POSITIVE,
    ];
    for op in options().map(|(_, op)| op) {
        let op = op.normalizer(Normalizer::None);
        let mut batch = batch::<T>(6, weights.len(), 333, 333, 2.0);
        batch.weights = Some(weights.to_vec());
        let got = checked(&op, &batch, How::default())?;
        if !got.loss[1].is_nan() || got.loss.iter().filter(|l| l.is_nan()).count() != 1 {
            return fail(format!("{:?}", got.loss));
        }
    }
    Ok(())
}

/// Upstream gradients of any value and stride.
fn upstream_gradients<T: Element>() -> Outcome {
    let rows = 6;
    let mut batch = batch::<T>(8, rows, 90, 90, 2.0);
    batch.labels[1] = -100;
    let op = everything();
    let unit = both(&op, &batch, How::default())?;
    for value in [1.0, 0.0, -0.0, -2.5, f32::NAN] {
        batch.dloss = Some((vec![value], 0));
        let got = checked(&op, &batch, How::default())?;
        if value == 1.0 {
            same("dloss = 1", &got, &unit)?;
        }
        if value == 0.0 && got.dlogits.iter().any(|d| d.to_f64() != 0.0) {
            return fail("dloss = 0 leaves gradients".into());
        }
    }
    for stride in [1, 2, 7] {
        let mut dloss = Random(stride).normal::<f32>(stride as usize * (rows - 1) + 1, 1.0);
        batch.dloss = Some((dloss.clone(), stride as i64));
        checked(&op, &batch, How::default())?;
        // A NaN stays in its row, and out of a masked one.
        for row in [0, 1] {
            dloss[row * stride as usize] = f32::NAN;
        }
        batch.dloss = Some((dloss, stride as i64));
        checked(&op, &batch, How::default())?;
    }
    Ok(())
}

/// What the mean and the gradients are divided by.
fn normalizers<T: Element>() -> Outcome {
    for rows in [1, 5, 300] {
        let mut batch = batch::<T>(11, rows, 20, 20, 2.0);
        batch.weights = Some((0..rows).map(|r| ((r + 1) % 4) as f32 / 2.0).collect());
        batch.labels[rows / 2] = -100;
        // What is given counts, whatever the options say.
        for given in [None, Some(1234.5)] {
            batch.normalizer = given;
            for normalizer in [
                Normalizer::None,
                Normalizer::Kept,
                Normalizer::Labels,
                Normalizer::Weight,
            ] {
                let op = CrossEntropy::default().normalizer(normalizer);
                checked(&op, &batch, How::default())?;
            }
        }
    }
    Ok(())
}

/// No rows: the summary of nothing. No columns: an error.
fn no_rows_and_no_columns<T: Element>() -> Outcome {
    for empty_is_nan in [false, true] {
        let op = CrossEntropy::default().vocab(5).empty_is_nan(empty_is_nan);
        let mut empty = Batch::<T>::new(vec![], 5, vec![]);
        checked(&op, &empty, How::default())?;
        empty.cols = 0;
        checked(&op, &empty, How::default())?;
    }
    let none = Batch::<T>::new(vec![], 0, vec![1, 2]);
    let op = CrossEntropy::default();
    for result in [
        loss_cpu::forward_backward(&op, &none, How::default()),
        loss_cpu::with_gradient(&op, &none, How::default()),
    ] {
        if !matches!(result, Err(Error::Classes { .. })) {
            return fail("rows of no columns are accepted".into());
        }
    }
    Ok(())
}

/// The argmax is the first of equal logits, the target's or another's, in whatever block.
fn the_first_of_equal_logits<T: Element>() -> Outcome {
    const COLS: usize = 3000;
    let places = [
        [0, 1, 2],
        [0, 255, 256],
        [17, 256, 2999],
        [255, 256, 257],
        [2998, 2999, 2999],
        [1, 512, 1024],
    ];
    for target in 0..4 {
        let mut logits = vec![T::from_f64(-1.0); places.len() * COLS];
        let mut labels = vec![40; places.len()];
        for (r, places) in places.iter().enumerate() {
            for &at in places {
                logits[r * COLS + at] = T::from_f64(2.5);
            }
            if let Some(&at) = places.get(target) {
                labels[r] = at as i64;
            }
        }
        let batch = Batch::new(logits, COLS, labels);
        let got = checked(&CrossEntropy::default(), &batch, How::default())?;
        let first = places.map(|places| places[0] as i32);
        assert_eq!(got.argmax, first);
    }
    Ok(())
}

/// Columns spread over ranks: the same bits on every rank, all inside the bounds, counts those of one rank.
fn ranks<T: Element>() -> Outcome {
    let cuts: [&[usize]; 6] = [
        &[1000],
        &[1, 999],
        &[600, 400],
        &[500, 17, 483],
        &[100, 125, 1, 300, 7, 160, 207, 100],
        &[999, 1],
    ];
    for op in options().map(|(_, op)| op) {
        let mut batch = batch::<T>(13, 9, 1000, 1000, 3.0);
        batch.weights = Some((0..9).map(|r| 0.5 + r as f32).collect());
        batch.labels[3] = op.ignore_index;
        batch.labels[4] = 0;
        batch.labels[5] = 999;
        // The argmax of some rows is their label, and on other ranks than the first.
        for r in [5, 6, 7] {
            batch.logits[r * 1000 + batch.labels[r] as usize] = T::from_f64(40.0);
        }
        batch.logits[8 * 1000..9 * 1000 - 100].fill(T::from_f64(f64::NEG_INFINITY));
        batch.logits[2 * 1000..3 * 1000].fill(T::from_f64(f64::NEG_INFINITY));
        let whole = checked(&op, &batch, How::default())?;
        let reference = expected(&op, &batch, &[]);
        for widths in cuts {
            let each = loss_cpu::sharded(&op, &batch, widths)?;
            let mut joined = each[0].clone();
            for (rank, results) in each.iter().enumerate() {
                if results.statistics() != each[0].statistics() {
                    return fail(format!("{widths:?}: rank {rank} differs from rank 0"));
                }
            }
            joined.dlogits.clear();
            for r in 0..9 {
                for (results, &width) in each.iter().zip(widths) {
                    let row = &results.dlogits[r * width..][..width];
                    joined.dlogits.extend_from_slice(row);
                }
            }
            within((widths, op), check(&op, &batch, &reference, &joined))?;
            let argmax = |x: &Results<T>| (x.argmax.clone(), x.summary.correct);
            if argmax(&joined) != argmax(&whole) {
                return fail(format!("{widths:?}: {:?}", joined.summary));
            }
        }
    }
    Ok(())
}

/// Dropped rows, decided inside: their loss is summed apart if asked for, and otherwise they have the bits of
/// rows of weight 0.
fn goldfish<T: Element>() -> Outcome {
    const ROWS: usize = 120;
    let mut random = Random(15);
    let ids: Vec<i64> = (0..ROWS).map(|_| (random.bits() % 30) as i64 + 1).collect();
    let halo: Vec<i64> = (0..6).map(|_| (random.bits() % 30) as i64).collect();
    let rows = Tokens::rows(&ids, ROWS / 3).halo(&halo).exempt(&[3, 4]);
    let documents = Tokens::documents(&ids, &[-2, 31, 31, 80])
        .halo(&halo)
        .exempt(&[3, 4]);
    let strategies = [
        Drops::Static { k: 3, start: 1 },
        Drops::Random { k: 3, seed: 9 },
        Drops::ProductTable { k: 4, h: 13 },
        Drops::ProductAvalanche { k: 3, h: 4 },
        Drops::DotTable { k: 2, h: 20 },
        Drops::Hash64 {
            k: 2,
            h: 5,
            seed: 3,
        },
    ];
    let op = CrossEntropy::default();
    for (strategy, narrow) in strategies
        .into_iter()
        .zip([false, true].into_iter().cycle())
    {
        let strategy = Goldfish::new(strategy)?;
        for tokens in [Tokens::row(&ids), rows, documents] {
            let keep = strategy.keep(&tokens)?;
            let dropped: Vec<bool> = keep.iter().map(|keep| !keep).collect();
            assert!(dropped.contains(&true) && dropped.contains(&false));
            let mut batch = batch::<T>(16, ROWS, 31, 31, 2.0);
            batch.labels[7] = -100;
            let how = How {
                goldfish: Some((&strategy, tokens)),
                narrow,
                ..How::default()
            };
            let mut fused = both(&op, &batch, how)?;
            let mut weighted = batch.clone();
            weighted.weights = Some(keep.iter().map(|&keep| f32::from(keep)).collect());
            let weights = both(&op, &weighted, How::default())?;
            // Weights cannot tell a dropped row from a masked one.
            fused.summary.dropped = 0;
            same(&format!("{strategy:?}"), &fused, &weights)?;
            for (_, op) in options() {
                let op = op.dropped_loss(true);
                let got = both(&op, &batch, how)?;
                let reference = expected(&op, &batch, &dropped);
                within(op, check(&op, &batch, &reference, &got))?;
            }
        }
    }
    Ok(())
}

/// The loss of rows that are all but certain is within 1e-6 of itself, over gaps at which the exponent rounds
/// as badly as it can.
fn confident_rows() -> Outcome {
    let op = CrossEntropy::default().normalizer(Normalizer::None);
    let gaps = if full() { 10_000 } else { 1200 };
    for others in [1, 3, 1000] {
        let gaps = if others > 10 { gaps / 50 } else { gaps };
        let cols = others + 1;
        let mut random = Random(others as u64);
        let mut logits = vec![0.0f32; gaps * cols];
        for (i, row) in logits.chunks_mut(cols).enumerate() {
            let top = random.uniform() as f32 * 10.0;
            // p from ½ to where the loss is nearly subnormal.
            let gap = (others as f32).ln() + 0.01 + 85.0 * i as f32 / gaps as f32;
            row.fill(top - gap);
            row[0] = top;
        }
        let batch = Batch::new(logits, cols, vec![0; gaps]);
        checked(&op, &batch, How::default())?;
    }
    Ok(())
}

/// Rows in two micro-batches, divided by the four tokens of both: the sum of the means is the mean over all four.
fn given_normalizer() -> Outcome {
    let batches: [(&[f32], &[i64], f32); 2] = [
        (&[0.2, 0.3, -0.1, 0.4, -0.2, 0.1], &[0, 1, 0], -0.131_244_8),
        (&[0.0, 0.5], &[1], 0.094_385_2),
    ];
    for normalizer in [Normalizer::Kept, Normalizer::None, Normalizer::Weight] {
        let op = CrossEntropy::default().normalizer(normalizer);
        let [mut mean, mut mean_of_one_call] = [0.0; 2];
        for (logits, labels, expected) in batches {
            let near = |d: f32| assert!((d - expected).abs() <= 2e-7, "{d}, not {expected}");
            let mut saved = vec![0; op.saved_bytes(labels.len() as u64) as usize];
            let call = ce::forward(&op, logits, labels).saved(&mut saved);
            let summary = call.normalizer(4.0).run()?;
            assert_eq!(summary.normalizer, 4.0);
            mean += summary.mean;
            let mut dlogits = logits.to_vec();
            let divisor = summary.normalizer;
            ce::backward_in_place(&op, &mut dlogits, labels, &saved, divisor).run()?;
            near(dlogits[0]);
            let mut dlogits = logits.to_vec();
            let call = ce::forward_with_gradient(&op, &mut dlogits, labels);
            mean_of_one_call += call.normalizer(4.0).run()?.mean;
            near(dlogits[0]);
        }
        for mean in [mean, mean_of_one_call] {
            assert!((mean - 0.636_726_5).abs() <= 2e-7, "{mean}");
        }
    }
    Ok(())
}

/// `logits[:, :-1]`: rows in groups give what they give one after the other, and what lies between stays.
fn rows_in_groups<T: Element>() -> Outcome {
    const GROUPS: usize = 5;
    const OF_EACH: usize = 4;
    const COLS: usize = 33;
    const PITCH: usize = COLS + 2;
    const OFFSET: usize = 3;
    const APART: usize = (OF_EACH + 1) * PITCH;
    let n = GROUPS * OF_EACH;
    let mut batch = batch::<T>(31, n, COLS, COLS, 2.0);
    batch.labels[6] = -100;
    let op = CrossEntropy::default().label_smoothing(0.1).z_loss(1e-3);
    let dense = both(&op, &batch, How::default())?;
    let between = T::from_f64(7.0);
    let spread = |values: &[T]| {
        let mut elements = vec![between; OFFSET + GROUPS * APART];
        for (row, values) in values.chunks(COLS).enumerate() {
            let at = OFFSET + row / OF_EACH * APART + row % OF_EACH * PITCH;
            elements[at..at + COLS].copy_from_slice(values);
        }
        elements
    };
    let rows = Rows::new(n, COLS)
        .pitch(PITCH)
        .groups(OF_EACH, APART)
        .offset(OFFSET);
    let expected = spread(&dense.dlogits);
    let logits = spread(&batch.logits);
    let (mut loss, mut saved) = (vec![7.0; n], vec![0; op.saved_bytes(n as u64) as usize]);
    let mut argmax = vec![7; n];
    let summary = ce::forward(&op, Input::rows(&logits, rows), &batch.labels)
        .loss(&mut loss)
        .argmax(&mut argmax)
        .saved(&mut saved)
        .run()?;
    assert_eq!(bits(&loss), bits(&dense.loss));
    assert_eq!(
        (summary, &argmax, &saved),
        (dense.summary, &dense.argmax, &loss_cpu::saved(&dense.stats))
    );
    let divisor = summary.normalizer;
    let mut apart = vec![between; logits.len()];
    let (from, to) = (Input::rows(&logits, rows), Output::rows(&mut apart, rows));
    ce::backward(&op, from, &batch.labels, &saved, divisor, to).run()?;
    assert_eq!(bits(&apart), bits(&expected));
    // Between groups and the same rows without gaps.
    let mut out = vec![between; batch.logits.len()];
    let from = Input::rows(&logits, rows);
    ce::backward(&op, from, &batch.labels, &saved, divisor, &mut out).run()?;
    assert_eq!(bits(&out), bits(&dense.dlogits));
    let mut in_place = logits.clone();
    let to = Output::rows(&mut in_place, rows);
    ce::backward_in_place(&op, to, &batch.labels, &saved, divisor).run()?;
    assert_eq!(bits(&in_place), bits(&expected));
    let mut in_place = logits.clone();
    let to = Output::rows(&mut in_place, rows);
    ce::forward_with_gradient(&op, to, &batch.labels).run()?;
    assert_eq!(bits(&in_place), bits(&expected));
    // A group that is not whole, and one that overlaps the next.
    let few = Rows::new(n, COLS).groups(3, APART);
    let refused = ce::forward(&op, Input::rows(&logits, few), &batch.labels).run();
    assert!(matches!(refused, Err(Error::Length { .. })), "{refused:?}");
    let close = rows.groups(OF_EACH, APART - 2 * PITCH);
    let refused = ce::forward(&op, Input::rows(&logits, close), &batch.labels).run();
    assert!(
        matches!(refused, Err(Error::GroupPitch { .. })),
        "{refused:?}"
    );
    Ok(())
}

/// Bad lengths, pitches and options are typed errors, and nothing is written.
fn errors() -> Outcome {
    const N: usize = 3;
    const V: usize = 4;
    let logits = [0.5f32; N * V + 1];
    let labels = [0i64, 1, 2];
    let op = CrossEntropy::default();
    let length = |what, expected, got| {
        Err(Error::Length {
            what,
            expected,
            got,
        })
    };
    /// Runs a forward with a loss, and a change of the call.
    macro_rules! forward {
        ($op:expr, $logits:expr $(, $($change:tt)+)?) => {{
            let op = $op;
            let mut loss = [7.0; N];
            let call = ce::forward(&op, $logits, &labels).loss(&mut loss);
            let result = call$(.$($change)+)?.run().map(|_| ());
            assert!(result.is_ok() || loss == [7.0; N]);
            result
        }};
    }
    let dense = &logits[..N * V];
    let rows = Rows::new(N, V);
    assert_eq!(forward!(op, dense), Ok(()));
    assert_eq!(forward!(op, Input::rows(dense, rows)), Ok(()));
    // Rows of less than a column, and what is no whole number of rows.
    assert_eq!(forward!(op, &logits[..1]), length("logits", 0, 1));
    assert_eq!(forward!(op, &logits[..N * V - 1]), length("logits", 9, 11));
    assert_eq!(forward!(op, &logits), length("logits", 12, 13));
    for len in [0, 1, N * V - 1] {
        let got = forward!(op, Input::rows(&logits[..len], rows));
        assert_eq!(got, length("logits", 12, len as u64));
    }
    let late = forward!(op, Input::rows(&logits, rows.offset(2)));
    assert_eq!(late, length("logits", 14, 13));
    let more = forward!(op, Input::rows(&logits, Rows::new(N + 1, N)));
    assert_eq!(more, length("labels", 4, 3));
    let none = forward!(op, &logits[..0]);
    assert!(matches!(none, Err(Error::Classes { .. })), "{none:?}");
    let overlapping = forward!(op, Input::rows(dense, rows.pitch(V - 1)));
    assert!(
        matches!(overlapping, Err(Error::Pitch { .. })),
        "{overlapping:?}"
    );
    let endless = forward!(op, Input::rows(dense, rows.pitch(usize::MAX)));
    assert_eq!(endless, length("logits", u64::MAX, 12));
    assert_eq!(
        forward!(op, dense, weights(&[1.0; 2])),
        length("weights", 3, 2)
    );
    let strategy = Goldfish::new(Drops::Static { k: 2, start: 0 })?;
    let few = forward!(op, dense, goldfish(&strategy, Tokens::row(&labels[..2])));
    assert_eq!(few, length("hash_ids", 3, 2));
    let decreasing = Tokens::documents(&labels, &[2, 1]);
    let offsets = forward!(op, dense, goldfish(&strategy, decreasing));
    assert_eq!(offsets, Err(Error::Offsets { at: 1 }));
    for bad in [op.label_smoothing(1.0), op.z_loss(-1.0), op.softcap(0.0)] {
        let result = forward!(bad, dense);
        assert!(
            matches!(result, Err(Error::OutOfRange { .. })),
            "{result:?}"
        );
    }
    assert_eq!(
        forward!(op.vocab(5), dense),
        length("a row of logits", 5, 4)
    );
    for (first_class, classes) in [(0, 0), (0, 3), (1, 4), (u64::MAX, 4), (0, 1 << 32)] {
        let mut saved = vec![7; op.saved_bytes(N as u64) as usize];
        let shard = Shard::new(first_class, classes);
        let result = ce::partial(&op, dense, &labels, shard, &mut saved).run();
        assert!(matches!(result, Err(Error::Classes { .. })), "{result:?}");
        assert!(saved.iter().all(|&byte| byte == 7));
    }

    let bytes = op.saved_bytes(N as u64) as usize;
    for what in ["loss", "z_loss", "lse", "argmax", "saved"] {
        let [mut loss, mut z_loss, mut lse] = [[7.0; N]; 3];
        let (mut argmax, mut saved) = ([7; N], vec![7; bytes]);
        let len = |name| if name == what { N - 1 } else { N };
        let of_saved = if what == "saved" { bytes - 1 } else { bytes };
        let call = ce::forward(&op, dense, &labels)
            .loss(&mut loss[..len("loss")])
            .z_loss(&mut z_loss[..len("z_loss")])
            .lse(&mut lse[..len("lse")])
            .argmax(&mut argmax[..len("argmax")])
            .saved(&mut saved[..of_saved]);
        let expected = match what {
            "saved" => length(what, bytes as u64, bytes as u64 - 1),
            _ => length(what, 3, 2),
        };
        assert_eq!(call.run().map(|_| ()), expected);
        assert_eq!(
            (loss, z_loss, lse, argmax),
            ([7.0; N], [7.0; N], [7.0; N], [7; N])
        );
        assert!(saved.iter().all(|&byte| byte == 7));
    }

    /// Runs a backward, and a change of the call.
    macro_rules! backward {
        ($saved:expr, $rows:expr, $len:expr $(, $($change:tt)+)?) => {{
            let saved = vec![0; $saved];
            let mut dlogits = vec![7.0f32; $len];
            let output = match $rows {
                Some(rows) => Output::rows(&mut dlogits, rows),
                None => (&mut dlogits).into(),
            };
            let call = ce::backward(&op, dense, &labels, &saved, 1.0, output);
            let result = call$(.$($change)+)?.run();
            assert!(result.is_ok() || dlogits.iter().all(|&d| d == 7.0));
            result
        }};
    }
    let whole: Option<Rows> = None;
    let saved = |got: usize| length("saved", bytes as u64, got as u64);
    assert_eq!(backward!(bytes, whole, N * V), Ok(()));
    assert_eq!(backward!(bytes + 1, whole, N * V), saved(bytes + 1));
    assert_eq!(backward!(0, whole, N * V), saved(0));
    assert_eq!(
        backward!(bytes / N * (N + 1), whole, N * V),
        saved(bytes / N * (N + 1))
    );
    // What is given as rows has the shape of the call, and the dense logits are too many for it.
    assert_eq!(
        backward!(bytes, Some(Rows::new(N, 3)), 9),
        length("logits", 9, 12)
    );
    assert_eq!(backward!(bytes, whole, 11), length("dlogits", 12, 11));
    assert_eq!(backward!(bytes, Some(rows), 11), length("dlogits", 12, 11));
    for (stride, needed) in [(1, 3), (2, 5), (usize::MAX, u64::MAX)] {
        let result = backward!(bytes, whole, N * V, dloss_strided(&[1.0, 2.0], stride));
        assert_eq!(result, length("dloss", needed, 2));
    }
    assert_eq!(
        backward!(bytes, whole, N * V, dloss(&[1.0, 2.0])),
        length("dloss", 3, 2)
    );
    assert_eq!(
        backward!(bytes, whole, N * V, dloss(&[])),
        length("dloss", 3, 0)
    );
    assert_eq!(backward!(bytes, whole, N * V, dloss(&[2.0])), Ok(()));
    assert_eq!(
        backward!(bytes, whole, N * V, dloss_strided(&[2.0], 0)),
        Ok(())
    );
    for (first_class, classes) in [(0, 0), (0, 3), (1, 4), (u64::MAX, 4), (0, 1 << 32)] {
        let shard = Shard::new(first_class, classes);
        let result = backward!(bytes, whole, N * V, shard(shard));
        assert!(matches!(result, Err(Error::Classes { .. })), "{result:?}");
    }

    let mut few = vec![7; bytes / N * 2];
    let shard = Shard::new(0, 8);
    let call = ce::partial(&op, dense, &labels, shard, &mut few);
    assert_eq!(call.run(), saved(bytes / N * 2));
    assert!(few.iter().all(|&byte| byte == 7));
    let call = ce::finish(&op, &labels, shard, &few);
    assert_eq!(call.run().map(|_| ()), saved(bytes / N * 2));
    Ok(())
}
