//! Cross-entropy on the device of this process: accuracy over shapes, options and modes, both ways to the
//! gradient, places, schedules, ranks, special values, bad input, traffic.
//!
//! `XACT_DEVICE=auto|gpu|emulated[:MODEL]` chooses the device; `XACT_FULL=1` runs everything there is.

mod decision;

use std::num::NonZeroU32;
use std::process::ExitCode;

use cuda_emulator::{Approx, LaunchReport, Schedule, Settings};
use half::{bf16, f16};
use libtest_mimic::Failed;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use xact::cpu::cross_entropy as cpu;
use xact::loss::cross_entropy::Shard;
use xact::loss::goldfish::Tokens;
use xact::raw::Blocks;
use xact::raw::goldfish::IdType;
use xact::{CrossEntropy, Device, Element, Goldfish, Normalizer, RowStats, Strategy as Drops};
use xact_dev::check::EVERY;
use xact_dev::choose::Gpu;
use xact_dev::inputs::Random;
use xact_dev::loss::{self, Batch, Fish, How, Results, Uploaded};
use xact_dev::loss_cases::{
    any_call, batch, check_golden, check_masked_golden, everything, options, special_rows,
};
use xact_dev::loss_check::{same, within};
use xact_dev::run::Place;
use xact_dev::same::bits;
use xact_dev::trials::{self, Outcome, Table};
use xact_dev::{goldfish, loss_cpu};

fn main() -> ExitCode {
    trials::main(|table| fill(&mut CrossEntropies(table)))
}

fn fill(table: &mut CrossEntropies<'_>) {
    table.of_type::<f32>();
    table.of_type::<f16>();
    table.of_type::<bf16>();
    table.add("confident_rows".into(), false, confident_rows);
    table.add(
        "clusters_keep_long_rows".into(),
        true,
        clusters_keep_long_rows,
    );
    table.add(
        "clusters_are_no_larger_than_fit".into(),
        true,
        clusters_are_no_larger_than_fit,
    );
    table.add("launches".into(), true, launches);
    table.add(
        "blocks_of_a_cluster_are_a_choice".into(),
        true,
        blocks_of_a_cluster_are_a_choice,
    );
    table.add("goldfish_golden".into(), false, goldfish_golden);
    table.add(
        "goldfish_decision".into(),
        false,
        decision::drops_what_the_reference_drops,
    );
    table.add("beyond_32_bits".into(), true, beyond_32_bits);
    table.add("many_rows".into(), false, many_rows);
}

/// Puts the name of the op before that of a trial.
struct CrossEntropies<'a>(&'a mut Table);

impl CrossEntropies<'_> {
    fn add(
        &mut self,
        name: String,
        needs_emulator: bool,
        test: impl FnOnce(&Gpu, bool) -> Outcome + Send + 'static,
    ) {
        let name = format!("cross_entropy::{name}");
        self.0.add(name, needs_emulator, test);
    }

    fn of_type<T: Element>(&mut self) {
        for (name, op) in options() {
            self.add(
                format!("accuracy::{name}::{}", T::DTYPE),
                false,
                move |gpu, full| accuracy::<T>(gpu, full, &op),
            );
        }
        macro_rules! tests {
            ($($needs_emulator:literal $name:ident),+ $(,)?) => {$(
                let name = format!("{}::{}", stringify!($name), T::DTYPE);
                self.add(name, $needs_emulator, $name::<T>);
            )+};
        }
        tests![
            false vocabularies,
            false any_shape_and_options,
            false golden,
            false places,
            false large_common_offsets,
            false special_values,
            false columns_that_are_no_classes,
            false rows_that_do_not_count,
            false bad_labels,
            false weights_of_any_value,
            false upstream_gradients,
            false normalizers,
            false no_rows_and_no_columns,
            false the_first_of_equal_logits,
            false few_long_rows,
            false ranks,
            false stats_of_the_cpu_are_those_of_the_device,
            false dropped_rows,
            false fused_goldfish_is_the_mask,
            true same_bits_under_any_schedule,
            true traffic,
            true on_chip_and_not,
        ];
    }
}

/// What the approximate instructions return. A device has one way.
fn modes(gpu: &Gpu) -> &'static [Approx] {
    if gpu.emulated { &EVERY } else { &EVERY[..1] }
}

fn with_approx<R>(approx: Approx, f: impl FnOnce() -> R) -> R {
    let settings = Settings {
        approx,
        ..Settings::default()
    };
    cuda_emulator::with_settings(settings, f)
}

fn fail<R>(message: String) -> Result<R, Failed> {
    Err(message.into())
}

/// Both ways to the gradient, which give the same bits: where a cluster does not have to cut the rows finer.
fn both<T: Element>(
    gpu: &Gpu,
    op: &CrossEntropy,
    batch: &Batch<T>,
    how: How,
) -> Result<Results<T>, Failed> {
    let uploaded = Uploaded::new(gpu, batch, how);
    both_of(gpu, op, batch, &uploaded)
}

fn both_of<T: Element>(
    gpu: &Gpu,
    op: &CrossEntropy,
    batch: &Batch<T>,
    uploaded: &Uploaded<'_>,
) -> Result<Results<T>, Failed> {
    let two = loss::forward_backward(gpu, op, batch, uploaded)?;
    let one = loss::with_gradient(gpu, op, batch, uploaded)?;
    same("fused against stats and gradient", &one, &two)?;
    Ok(two)
}

/// Runs both ways and holds them against the reference.
fn checked<T: Element>(
    gpu: &Gpu,
    op: &CrossEntropy,
    batch: &Batch<T>,
    how: How,
) -> Result<Results<T>, Failed> {
    let got = both(gpu, op, batch, how)?;
    let expected = loss::expected(op, batch, &[]);
    within((op, how), loss::check(op, batch, &expected, &got))?;
    Ok(got)
}

/// Loss, lse and gradients are inside their bounds in each mode of the approximate instructions.
fn accuracy<T: Element>(gpu: &Gpu, full: bool, op: &CrossEntropy) -> Outcome {
    let mut shapes = vec![(8, 3), (9, 100), (8, 2500)];
    if full {
        shapes.extend([(1, 1), (8, 2), (1030, 17), (8, 50_257), (3, 131_072)]);
    }
    for (rows, cols) in shapes {
        let scales = [1.0, 5.0, 0.1, 20.0];
        for &scale in &scales[..if cols > 10_000 { 2 } else { 4 }] {
            let mut batch = batch::<T>(cols as u64, rows, cols, cols, scale);
            batch.weights = Some((0..rows).map(|r| 1.0 + r as f32 / 8.0).collect());
            let expected = loss::expected(op, &batch, &[]);
            for &approx in modes(gpu) {
                let got = with_approx(approx, || both(gpu, op, &batch, How::default()))?;
                let worst = loss::check(op, &batch, &expected, &got);
                within((approx, rows, cols, scale), worst)?;
            }
        }
    }
    Ok(())
}

/// Rows of real and of unlucky length.
fn vocabularies<T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    let long: &[usize] = if full || T::DTYPE == xact::Dtype::Bf16 {
        &[50_257, 131_071, 131_073]
    } else {
        &[50_257]
    };
    for &cols in [1, 7].iter().chain(long) {
        let op = CrossEntropy::default().label_smoothing(0.05);
        checked(
            gpu,
            &op,
            &batch::<T>(5, 2, cols, cols, 2.0),
            How {
                logits: Place { offset: 1, gap: 3 },
                ..How::default()
            },
        )?;
    }
    Ok(())
}

/// Anything together: shapes, places, label types, options, weights, upstream gradients, grids.
fn any_shape_and_options<T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    let config = Config {
        cases: if full { 1500 } else { 60 },
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let place = || (0..8usize, 0..9usize).prop_map(|(offset, gap)| Place { offset, gap });
    let how = (
        place(),
        place(),
        any::<[bool; 3]>(),
        prop::option::of(1..5u32),
    );
    let mut runner = TestRunner::new_with_rng(config, rng);
    let run = runner.run(&(any_call(5000, -3..4), how), |(call, how)| {
        let (op, batch) = (call.op, call.batch::<T>());
        let (logits, dlogits, [in_place, narrow, all_outputs], max_blocks) = how;
        let how = How {
            logits,
            dlogits,
            in_place,
            labels: if narrow { IdType::I32 } else { IdType::I64 },
            all_outputs: true,
            blocks: max_blocks.and_then(NonZeroU32::new).into(),
            cluster: None,
            groups: None,
        };
        let expected = loss::expected(&op, &batch, &[]);
        let got = both(gpu, &op, &batch, how).map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
        let worst = loss::check(&op, &batch, &expected, &got);
        prop_assert!(worst.ok(), "{worst:?}");
        if !all_outputs {
            let how = How { all_outputs, ..how };
            let fewer = both(gpu, &op, &batch, how);
            let fewer = fewer.map_err(|e| TestCaseError::fail(format!("{e:?}")))?;
            prop_assert!(bits(&fewer.dlogits) == bits(&got.dlogits));
            prop_assert_eq!(
                fewer.summary.loss.to_bits(),
                got.summary.loss.to_bits(),
                "without outputs"
            );
        }
        Ok(())
    });
    run.map_err(|e| e.to_string().into())
}

/// What PyTorch computes.
fn golden<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    check_golden::<T>(|op, batch| {
        both(gpu, op, batch, How::default()).map_err(|e| format!("{e:?}"))
    })?;
    Ok(())
}

/// The gradient has the same bits wherever its tensors lie, over the logits too, whatever the label type and
/// the grid. The statistics have those that belong to the place of the logits.
fn places<T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    let op = everything();
    let vector = 16 / size_of::<T>();
    let mut random = Random(17);
    let mut shapes = vec![(3, 1), (4, 7), (5, 33), (3, 2049), (2, 4099)];
    if full {
        shapes.extend([(270, 5), (2, 50_257)]);
    }
    for (rows, cols) in shapes {
        let batch = batch::<T>(cols as u64, rows, cols, cols, 3.0);
        let expected = loss::expected(&op, &batch, &[]);
        for round in 0..if full { 8 } else { 4 } {
            let mut place = || Place {
                offset: random.bits() as usize % vector,
                gap: random.bits() as usize % 9,
            };
            let logits = if round == 0 {
                Place::default()
            } else {
                place()
            };
            let how = How {
                logits,
                dlogits: place(),
                ..How::default()
            };
            let got = both(gpu, &op, &batch, how)?;
            let worst = loss::check(&op, &batch, &expected, &got);
            within((rows, cols, how), worst)?;
            let hows = [
                How {
                    in_place: true,
                    ..how
                },
                How {
                    labels: IdType::I32,
                    blocks: NonZeroU32::new(1).into(),
                    ..how
                },
                How {
                    blocks: NonZeroU32::new(2).into(),
                    ..how
                },
                How {
                    blocks: Blocks::Resident,
                    ..how
                },
                How {
                    blocks: NonZeroU32::new(7).into(),
                    dlogits: place(),
                    ..how
                },
            ];
            for other in hows {
                let again = both(gpu, &op, &batch, other)?;
                same(&format!("{rows} x {cols}, {other:?}"), &again, &got)?;
            }
        }
    }
    Ok(())
}

/// A constant added to all logits of a row costs the loss and the gradient no digits.
fn large_common_offsets<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    for offset in [1e4, -1e4, 3e4, -6e4] {
        let (rows, cols) = (8, 300);
        let mut batch = batch::<T>(3, rows, cols, cols, 3.0);
        for z in &mut batch.logits {
            *z = T::from_f64(z.to_f64() + offset);
        }
        for (_, op) in options().into_iter().filter(|(_, op)| op.softcap.is_none()) {
            let expected = loss::expected(&op, &batch, &[]);
            for &approx in modes(gpu) {
                let got = with_approx(approx, || both(gpu, &op, &batch, How::default()))?;
                let worst = loss::check(&op, &batch, &expected, &got);
                within((offset, op, approx), worst)?;
            }
        }
    }
    Ok(())
}

/// −inf, +inf and NaN among logits, rows of nothing but −inf, one-hot rows.
fn special_values<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let (batch, caps) = special_rows::<T>();
    for op in options().into_iter().map(|(_, op)| op).chain(caps) {
        let expected = loss::expected(&op, &batch, &[]);
        for &approx in modes(gpu) {
            // Where a row begins is no matter of approximations.
            let offsets: &[usize] = match approx {
                Approx::Nearest => &[0, 1],
                _ => &[0],
            };
            for &offset in offsets {
                let how = How {
                    logits: Place { offset, gap: 0 },
                    ..How::default()
                };
                let got = with_approx(approx, || both(gpu, &op, &batch, how))?;
                let worst = loss::check(&op, &batch, &expected, &got);
                within((op, approx, how), worst)?;
            }
        }
    }
    Ok(())
}

/// Columns beyond the classes hold anything: nothing of it is seen, and their gradient is 0.
fn columns_that_are_no_classes<T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    let mut shapes = vec![(3, 8, 7), (2, 64, 50), (2, 5000, 4097), (2, 9000, 3)];
    if full {
        shapes.push((270, 9, 5));
    }
    for (rows, cols, classes) in shapes {
        for junk in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30, -1e30] {
            let mut batch = batch::<T>(1, rows, cols, classes, 2.0);
            batch.labels[1] = classes as i64;
            for row in batch.logits.chunks_mut(cols) {
                row[classes..].fill(T::from_f64(junk));
            }
            for op in [CrossEntropy::default(), everything()] {
                let op = op.vocab(classes as u64);
                for offset in [0, 1] {
                    let how = How {
                        logits: Place { offset, gap: 1 },
                        ..How::default()
                    };
                    checked(gpu, &op, &batch, how)?;
                }
            }
        }
    }
    Ok(())
}

/// All rows ignored, one valid, all of weight 0: gradients are exactly 0, the mean 0 or NaN as was asked.
fn rows_that_do_not_count<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let (rows, cols) = (6, 70);
    for ignore_index in [-100, -1, -2, 0, 5, i64::from(i32::MIN)] {
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
                    labels: IdType::I32,
                    ..How::default()
                };
                checked(gpu, &op, &batch, how)?;
                batch.labels.fill(7);
                batch.weights = Some(vec![0.0, -0.0, 0.0, 0.0, 0.0, 0.0]);
                checked(gpu, &op, &batch, how)?;
                batch.labels[4] = 3;
                batch.weights = Some(vec![0.0, 0.0, 0.0, 0.0, 2.0, 0.0]);
                let valid = Random(1).normal(cols, 1.0);
                batch.logits[4 * cols..5 * cols].copy_from_slice(&valid);
                checked(gpu, &op, &batch, how)?;
            }
        }
    }
    Ok(())
}

/// A label that is no class makes its own row NaN and is reported; the others are what they are without it.
fn bad_labels<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let (rows, cols) = (7, 40);
    let labels = [
        40,
        41,
        -1,
        -2,
        -101,
        i64::from(i32::MAX),
        i64::from(i32::MIN),
    ];
    let wide = [i64::MAX, i64::MIN, 1 << 32, (1 << 32) + 3, -(1 << 32) + 3];
    let types = [
        (&labels[..], IdType::I32),
        (&labels[..], IdType::I64),
        (&wide[..], IdType::I64),
    ];
    for (labels, label_type) in types {
        for &label in labels {
            for op in [CrossEntropy::default(), everything()] {
                // A count of kept rows would change the others' gradients.
                let op = op.normalizer(Normalizer::None);
                let mut batch = batch::<T>(4, rows, cols, cols, 2.0);
                let how = How {
                    labels: label_type,
                    ..How::default()
                };
                let good = both(gpu, &op, &batch, how)?;
                for r in [5, 2] {
                    batch.labels[r] = label;
                }
                let got = checked(gpu, &op, &batch, how)?;
                for r in (0..rows).filter(|r| ![2, 5].contains(r)) {
                    let of = |x: &Results<T>| bits(&x.dlogits[r * cols..][..cols]).to_vec();
                    if of(&got) != of(&good) || got.loss[r].to_bits() != good.loss[r].to_bits() {
                        return fail(format!("label {label} changed row {r}"));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Weights are any numbers: negative ones are taken as they are, a NaN makes its own row NaN.
fn weights_of_any_value<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
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
        let got = checked(gpu, &op, &batch, How::default())?;
        if !got.loss[1].is_nan() || got.loss.iter().filter(|l| l.is_nan()).count() != 1 {
            return fail(format!("{:?}", got.loss));
        }
    }
    Ok(())
}

/// Upstream gradients of any value and stride.
fn upstream_gradients<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let rows = 6;
    let mut batch = batch::<T>(8, rows, 90, 90, 2.0);
    batch.labels[1] = -100;
    let op = everything();
    let unit = both(gpu, &op, &batch, How::default())?;
    for value in [1.0, 0.0, -0.0, -2.5, f32::NAN] {
        batch.dloss = Some((vec![value], 0));
        let got = checked(gpu, &op, &batch, How::default())?;
        if value == 1.0 {
            same("dloss = 1", &got, &unit)?;
        }
        if value == 0.0 && got.dlogits.iter().any(|d| d.to_f64() != 0.0) {
            return fail("dloss = 0 leaves gradients".into());
        }
    }
    for stride in [1i64, 2, 7, -1, -3] {
        let length = stride.unsigned_abs() as usize * (rows - 1) + 1;
        let mut dloss = Random(stride as u64).normal::<f32>(length, 1.0);
        batch.dloss = Some((dloss.clone(), stride));
        checked(gpu, &op, &batch, How::default())?;
        // A NaN stays in its row, and out of a masked one.
        for row in [0, 1] {
            let at = if stride < 0 { rows - 1 - row } else { row };
            dloss[at * stride.unsigned_abs() as usize] = f32::NAN;
        }
        batch.dloss = Some((dloss, stride));
        checked(gpu, &op, &batch, How::default())?;
    }
    Ok(())
}

/// What the mean and the gradients are divided by.
fn normalizers<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
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
                checked(gpu, &op, &batch, How::default())?;
            }
        }
    }
    Ok(())
}

/// No rows: the summary of nothing. No columns: an error.
fn no_rows_and_no_columns<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    for empty_is_nan in [false, true] {
        let op = CrossEntropy::default().vocab(5).empty_is_nan(empty_is_nan);
        let mut empty = Batch::<T>::new(vec![], 5, vec![]);
        checked(gpu, &op, &empty, How::default())?;
        empty.cols = 0;
        checked(gpu, &op, &empty, How::default())?;
    }
    let none = Batch::<T>::new(vec![], 0, vec![1, 2]);
    let uploaded = Uploaded::new(gpu, &none, How::default());
    let op = CrossEntropy::default();
    for result in [
        loss::forward_backward(gpu, &op, &none, &uploaded),
        loss::with_gradient(gpu, &op, &none, &uploaded),
    ] {
        if !matches!(result, Err(xact::Error::Classes { .. })) {
            return fail("rows of no columns are accepted".into());
        }
    }
    Ok(())
}

/// Rows that are not cut: more than half the blocks that rows are cut into.
const UNCUT_ROWS: usize = 513;

/// The argmax is the first of equal logits, wherever the row begins and whoever meets them.
fn the_first_of_equal_logits<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    const COLS: usize = 12_000;
    let op = CrossEntropy::default();
    let batch_packs = 256 * 16 / size_of::<T>();
    for offset in 0..16 / size_of::<T>() {
        let how = How {
            logits: Place { offset, gap: 0 },
            ..How::default()
        };
        let places = [
            vec![0, 1],
            vec![0, batch_packs - offset, batch_packs],
            vec![0, 4 * batch_packs],
            vec![1, 2 * batch_packs - offset, COLS - 1],
            vec![17, 3000, 9000],
            vec![COLS - 2, COLS - 1],
            vec![batch_packs, 5 * batch_packs],
            vec![3000, 300],
        ];
        // Enough rows that they are not cut, and enough that they are.
        for rows in [places.len(), UNCUT_ROWS] {
            if rows > 100 && offset > 1 {
                continue;
            }
            let mut labels = vec![-100; rows];
            let mut logits = vec![T::from_f64(-1.0); rows * COLS];
            for (r, places) in places.iter().enumerate() {
                labels[r] = places[0] as i64;
                for &at in places {
                    logits[r * COLS + at] = T::from_f64(2.5);
                }
            }
            let batch = Batch::new(logits, COLS, labels);
            let uploaded = Uploaded::new(gpu, &batch, how);
            for got in [
                loss::forward_backward(gpu, &op, &batch, &uploaded)?,
                loss::with_gradient(gpu, &op, &batch, &uploaded)?,
            ] {
                for (r, places) in places.iter().enumerate() {
                    let first = places.iter().min().map(|&at| at as i32);
                    if Some(got.argmax[r]) != first {
                        return fail(format!("{how:?} {places:?}: {}", got.argmax[r]));
                    }
                }
            }
        }
    }
    Ok(())
}

/// A row so long that many blocks share it.
fn few_long_rows<T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    let cols = if full || T::DTYPE == xact::Dtype::Bf16 {
        262_144
    } else {
        40_000
    };
    let op = CrossEntropy::default().label_smoothing(0.1);
    let batch = batch::<T>(12, 1, cols, cols, 3.0);
    let got = checked(gpu, &op, &batch, How::default())?;
    for blocks in [1, 3] {
        let how = How {
            blocks: NonZeroU32::new(blocks).into(),
            ..How::default()
        };
        same("few blocks", &both(gpu, &op, &batch, how)?, &got)?;
    }
    Ok(())
}

/// Columns spread over ranks: the same bits on every rank, losses within 4 ulp of one rank's, all inside the
/// bounds.
fn ranks<T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    let cuts: [&[usize]; 7] = [
        &[1000],
        &[1, 999],
        &[600, 400],
        &[500, 17, 483],
        &[100, 125, 1, 300, 7, 160, 207, 100],
        &[125, 125, 125, 125, 125, 125, 125, 125],
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
        let whole = both(gpu, &op, &batch, How::default())?;
        let expected = loss::expected(&op, &batch, &[]);
        within("one rank", loss::check(&op, &batch, &expected, &whole))?;
        for (i, widths) in cuts.into_iter().enumerate() {
            let how = How {
                logits: Place {
                    offset: i % 3,
                    gap: i,
                },
                labels: if i % 2 == 0 { IdType::I32 } else { IdType::I64 },
                ..How::default()
            };
            let each = loss::sharded(gpu, &op, &batch, widths, how)?;
            let mut joined = each[0].clone();
            for (rank, results) in each.iter().enumerate() {
                if results.statistics() != each[0].statistics() {
                    return fail(format!("{widths:?}: rank {rank} differs from rank 0"));
                }
            }
            joined.dlogits = (0..9)
                .flat_map(|r| {
                    let part = |(rank, &width): (usize, &usize)| {
                        each[rank].dlogits[r * width..][..width].to_vec()
                    };
                    widths.iter().enumerate().flat_map(part).collect::<Vec<_>>()
                })
                .collect();
            let worst = loss::check(&op, &batch, &expected, &joined);
            within((widths, op), worst)?;
            for (got, whole) in [
                (&joined.loss, &whole.loss),
                (&joined.lse, &whole.lse),
                (&joined.z_loss, &whole.z_loss),
            ] {
                for (&got, &whole) in got.iter().zip(whole) {
                    if (got - whole).abs() > 4.0 * f32::EPSILON * whole.abs() {
                        return fail(format!("{widths:?}: {got:e}, unsharded {whole:e}"));
                    }
                }
            }
            if (joined.argmax.clone(), joined.summary.correct)
                != (whole.argmax.clone(), whole.summary.correct)
            {
                return fail(format!("{widths:?}: {:?}", joined.summary));
            }
            if !full {
                continue;
            }
            for &approx in modes(gpu) {
                let each = with_approx(approx, || loss::sharded(gpu, &op, &batch, widths, how))?;
                if each.iter().any(|r| r.statistics() != each[0].statistics()) {
                    return fail(format!("{widths:?}, {approx:?}: ranks differ"));
                }
            }
        }
    }
    Ok(())
}

/// The stats of the CPU backend are those of the device but for the rounding of the sums, and it finishes from
/// the device's, so that ranks of both kinds may be mixed.
fn stats_of_the_cpu_are_those_of_the_device<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    // Of a sum relative to its terms, what 4 ulp of the loss allow each side.
    const SUMS: f32 = 2.0 * 4.0 * f32::EPSILON;
    for op in options().map(|(_, op)| op) {
        let mut batch = batch::<T>(22, 9, 500, 500, 3.0);
        batch.labels[3] = op.ignore_index;
        let expected = loss::expected(&op, &batch, &[]);
        let there = both(gpu, &op, &batch, How::default())?;
        let here = loss_cpu::forward_backward(&op, &batch, loss_cpu::How::default())?;
        for (there, here) in there.stats.iter().zip(&here.stats) {
            let exact = |s: &RowStats| (s.max.to_bits(), s.target.to_bits(), s.argmax);
            let near = |a: f32, b: f32, size: f32| (a - b).abs() <= SUMS * size;
            let sums = near(there.rest, here.rest, here.rest)
                && near(there.sum, here.sum, 500.0 * here.max.abs());
            if exact(there) != exact(here) || !sums {
                return fail(format!("{op:?}: {there:?} and {here:?}"));
            }
        }
        let mut got = there.clone();
        let gathered = loss_cpu::saved(&there.stats);
        let call = cpu::finish(&op, &batch.labels, Shard::new(0, 500), &gathered)
            .loss(&mut got.loss)
            .z_loss(&mut got.z_loss)
            .lse(&mut got.lse)
            .argmax(&mut got.argmax);
        got.summary = call.run()?;
        within(op, loss::check(&op, &batch, &expected, &got))?;
    }
    Ok(())
}

/// A strategy that drops about half.
fn half_dropped(gpu: &Gpu) -> (Goldfish, Vec<i64>, Vec<bool>) {
    let goldfish = Goldfish::new(Drops::Hash64 {
        k: 2,
        h: 3,
        seed: 5,
    })
    .expect("valid");
    let ids: Vec<i64> = (0..40).map(|i| i * 7919 % 101).collect();
    let keep = goldfish::keep(gpu, &goldfish, &Tokens::row(&ids), goldfish::How::default());
    let dropped = keep.expect("a mask").into_iter().map(|k| !k).collect();
    (goldfish, ids, dropped)
}

/// Dropped rows: their loss is summed apart if asked for, and the loss of all is the sum of both.
fn dropped_rows<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let (goldfish, ids, dropped) = half_dropped(gpu);
    let fish = Fish::new(gpu, &goldfish, &ids);
    let count = dropped.iter().filter(|&&d| d).count();
    if !(10..30).contains(&count) {
        return fail(format!("{count} of 40 dropped"));
    }
    for op in options().map(|(_, op)| op) {
        let op = op.normalizer(Normalizer::Kept);
        let mut batch = batch::<T>(14, 40, 150, 150, 2.0);
        batch.labels[3] = op.ignore_index;
        batch.weights = Some((0..40).map(|r| (r % 3) as f32).collect());
        let all = both(gpu, &op, &batch, How::default())?;
        for dropped_loss in [false, true] {
            let op = op.dropped_loss(dropped_loss);
            let expected = loss::expected(&op, &batch, &dropped);
            let mut uploaded = Uploaded::new(gpu, &batch, How::default());
            uploaded.goldfish = Some(fish.decision());
            let got = both_of(gpu, &op, &batch, &uploaded)?;
            within(op, loss::check(&op, &batch, &expected, &got))?;
            if !dropped_loss {
                continue;
            }
            let s = got.summary;
            let sum = f64::from(s.loss) + f64::from(s.dropped_loss);
            let whole = f64::from(all.summary.loss);
            if (sum - whole).abs() > 1e-6 * whole.abs() || s.kept + s.dropped != all.summary.kept {
                return fail(format!("{s:?} is not a part of {:?}", all.summary));
            }
        }
    }
    Ok(())
}

/// Deciding inside the loss gives the bits of a mask given as weights.
fn fused_goldfish_is_the_mask<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    let strategies = [
        Drops::Static { k: 3, start: 1 },
        Drops::Random { k: 3, seed: 9 },
        Drops::ProductTable { k: 4, h: 13 },
        Drops::ProductAvalanche { k: 3, h: 4 },
        Drops::DotTable { k: 2, h: 50 },
        Drops::Hash64 {
            k: 2,
            h: 40,
            seed: 3,
        },
    ];
    let rows = 130;
    let mut random = Random(15);
    let ids: Vec<i64> = (0..rows).map(|_| (random.bits() % 30) as i64 + 1).collect();
    for strategy in strategies {
        let goldfish = Goldfish::new(strategy).map_err(|e| e.to_string())?;
        let keep = goldfish::keep(gpu, &goldfish, &Tokens::row(&ids), goldfish::How::default())?;
        let fish = Fish::new(gpu, &goldfish, &ids);
        let mut masked = batch::<T>(16, rows, 31, 31, 2.0);
        masked.labels[7] = -100;
        let op = CrossEntropy::default();
        let mut uploaded = Uploaded::new(gpu, &masked, How::default());
        uploaded.goldfish = Some(fish.decision());
        let mut fused = both_of(gpu, &op, &masked, &uploaded)?;
        masked.weights = Some(keep.iter().map(|&k| f32::from(k)).collect());
        let weights = both(gpu, &op, &masked, How::default())?;
        let dropped = keep.iter().filter(|k| !**k).count();
        if fused.summary.dropped != dropped as u64 - u64::from(!keep[7]) || dropped == 0 {
            return fail(format!("{strategy:?}: {dropped}, {:?}", fused.summary));
        }
        // Weights cannot tell a dropped row from a masked one.
        fused.summary.dropped = 0;
        same(&format!("{strategy:?}"), &fused, &weights)?;
    }
    Ok(())
}

/// The same bits whatever the order in which blocks, warps and lanes run, and no race, no read of what was not
/// written and no access outside a buffer in any of them, or the launch would fail.
fn same_bits_under_any_schedule<T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    let (goldfish, ids, _) = half_dropped(gpu);
    let fish = Fish::new(gpu, &goldfish, &ids);
    let seeds = if full { 20 } else { 2 };
    let schedules: Vec<_> = (0..seeds)
        .map(Schedule::Seeded)
        .chain([Schedule::Reversed])
        .collect();
    let mut shapes = vec![(40, 60), (2, 4500)];
    if T::DTYPE == xact::Dtype::F32 {
        // Of 8 parts; where there is one cluster, it exchanges the stats of four rows, one after the other.
        shapes.push((5, 8 * STEP_BYTES / size_of::<T>() - 3));
        // Of two chunks, of which a block does the last and then adds up both.
        shapes.push((270, 3));
    }
    for (rows, cols) in shapes {
        for op in [CrossEntropy::default(), everything()] {
            let op = op.dropped_loss(true).vocab(cols as u64 - 1);
            let mut batch = batch::<T>(18, rows, cols, cols - 1, 3.0);
            batch.labels[1] = -7;
            let how = How {
                logits: Place { offset: 1, gap: 2 },
                ..How::default()
            };
            let run = |blocks| {
                let how = How { blocks, ..how };
                let mut uploaded = Uploaded::new(gpu, &batch, how);
                if rows == ids.len() {
                    uploaded.goldfish = Some(fish.decision());
                }
                both_of(gpu, &op, &batch, &uploaded)
            };
            let in_order = run(Blocks::All)?;
            for (i, &schedule) in schedules.iter().enumerate() {
                let settings = Settings {
                    schedule,
                    ..Settings::default()
                };
                let blocks = NonZeroU32::new(3 * i as u32).into();
                let again = cuda_emulator::with_settings(settings, || run(blocks))?;
                same(&format!("{rows} x {cols}, {schedule:?}"), &again, &in_order)?;
            }
        }
    }
    let batch = batch::<T>(19, 5, 90, 90, 3.0);
    let run = || loss::sharded(gpu, &everything(), &batch, &[40, 1, 49], How::default());
    let in_order = run()?;
    for schedule in schedules {
        let settings = Settings {
            schedule,
            ..Settings::default()
        };
        let again = cuda_emulator::with_settings(settings, run)?;
        for (again, in_order) in again.iter().zip(&in_order) {
            same(&format!("ranks, {schedule:?}"), again, in_order)?;
        }
    }
    Ok(())
}

/// What a block takes of a row in one step: a vector per thread.
const STEP_BYTES: usize = 256 * 16;

/// Bytes that a launch reads from and writes to the tensors of logits: buffers of at least `len` bytes.
fn moved(launch: &LaunchReport, len: usize) -> (u64, u64) {
    let large = || launch.buffers.iter().filter(|b| b.len >= len as u64);
    (
        large().map(|b| b.bytes_read).sum(),
        large().map(|b| b.bytes_written).sum(),
    )
}

fn named<'a>(launches: &'a [LaunchReport], task: &str) -> Result<&'a LaunchReport, Failed> {
    let name = format!("cross_entropy_{task}_");
    let mut found = launches.iter().filter(|l| l.kernel.starts_with(&name));
    match (found.next(), found.next()) {
        (Some(launch), None) => Ok(launch),
        _ => fail(format!("not one launch of {name}")),
    }
}

/// Fails unless a launch reads and writes so many bytes of the logits, all in whole vectors and in as few sectors
/// as there can be.
fn moves(launch: &LaunchReport, len: usize, bytes: (u64, u64)) -> Outcome {
    let name = &launch.kernel;
    if moved(launch, len) != bytes {
        return fail(format!("{name}: {:?}, not {bytes:?}", moved(launch, len)));
    }
    for b in launch.buffers.iter().filter(|b| b.len >= len as u64) {
        for access in [&b.loads, &b.stores] {
            if access.by_width[..4] != [0; 4] || access.sectors != access.minimum_sectors {
                return fail(format!("{name}: {access:?}"));
            }
        }
    }
    Ok(())
}

/// Another device of the emulator.
fn device(ordinal: usize) -> Result<Gpu, Failed> {
    let device = Device::new(ordinal).map_err(|e| e.to_string())?;
    let stream = device
        .context()
        .new_stream()
        .map_err(|e| format!("{e:?}"))?;
    let name = device.name().map_err(|e| e.to_string())?;
    Ok(Gpu {
        device,
        stream,
        name,
        emulated: true,
    })
}

/// The same device, and the A100 that the emulator has besides.
fn devices(gpu: &Gpu) -> Result<[Gpu; 2], Failed> {
    let a100 = device(1)?;
    assert!(!gpu.name.contains("A100") && a100.name.contains("A100"));
    Ok([gpu.clone(), a100])
}

/// Each byte of a row that counts is read once by the forward, once by the backward; of others nothing is read.
/// Each byte of the gradient is written once. Whole vectors, as few sectors as there can be.
fn traffic<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    const ROWS: usize = 40;
    const CLASSES: usize = 2048;
    const COLS: usize = CLASSES + 64;
    let (goldfish, ids, dropped) = half_dropped(gpu);
    let size = size_of::<T>();
    for gpu in devices(gpu)? {
        let fish = Fish::new(&gpu, &goldfish, &ids);
        for dropped_loss in [false, true] {
            for op in [CrossEntropy::default(), everything()] {
                let op = op.vocab(CLASSES as u64).dropped_loss(dropped_loss);
                let mut batch = batch::<T>(20, ROWS, COLS, CLASSES, 2.0);
                batch.labels[1] = op.ignore_index;
                batch.labels[2] = -5;
                batch.weights = Some((0..ROWS).map(|r| f32::from(r != 3)).collect());
                let how = How {
                    all_outputs: false,
                    ..How::default()
                };
                let mut uploaded = Uploaded::new(&gpu, &batch, how);
                uploaded.goldfish = Some(fish.decision());
                let (two, launches) =
                    cuda_emulator::record(|| loss::forward_backward(&gpu, &op, &batch, &uploaded));
                two?;
                let counts = |r: &usize| ![1, 2, 3].contains(r);
                let kept = (0..ROWS).filter(|r| counts(r) && !dropped[*r]).count();
                let read = (0..ROWS)
                    .filter(|r| counts(r) && (dropped_loss || !dropped[*r]))
                    .count();
                let row = |rows: usize| (rows * CLASSES * size) as u64;
                let all = (ROWS * COLS * size) as u64;
                let len = ROWS * COLS * size;
                let (stats, gradient) = (named(&launches, "stats")?, named(&launches, "gradient")?);
                moves(stats, len, (row(read), 0))?;
                moves(gradient, len, (row(kept), all))?;
                for launch in &launches[1..] {
                    let shared = launch.shared;
                    if launch.kernel.contains("finish") && moved(launch, len) != (0, 0) {
                        return fail(format!("{} reads logits, {shared:?}", launch.kernel));
                    }
                }
                // At once: clusters read once what counts, a device without them twice.
                let (one, launches) =
                    cuda_emulator::record(|| loss::with_gradient(&gpu, &op, &batch, &uploaded));
                one?;
                if !gpu.name.contains("A100") {
                    moves(named(&launches, "cluster")?, len, (row(read), all))?;
                } else {
                    moves(named(&launches, "stats")?, len, (row(read), 0))?;
                    moves(named(&launches, "gradient")?, len, (row(kept), all))?;
                }
            }
        }
    }
    Ok(())
}

/// `rows` rows of which three count, the first and the last among them.
fn three_of<T: Element>(rows: usize, cols: usize) -> Batch<T> {
    let mut labels = vec![-100; rows];
    let mut logits = vec![T::from_f64(0.0); rows * cols];
    for r in [0, rows / 3, rows - 1] {
        labels[r] = (r * 7) as i64;
        let row = Random(r as u64).normal::<T>(cols, 3.0);
        logits[r * cols..][..cols].copy_from_slice(&row);
    }
    Batch::new(logits, cols, labels)
}

/// Rows as long as those of real vocabularies are read once and written once, in parts of 32 KiB by 8 blocks, with
/// the bits of the other way to the gradient.
fn clusters_keep_long_rows(gpu: &Gpu, full: bool) -> Outcome {
    let mut shapes = vec![(114, 131_072, 8)];
    if full {
        // So many that clusters take as few parts as fit: the bits are others.
        shapes.extend([(200, 131_071, 4), (513, 128_256, 4), (513, 152_064, 8)]);
    }
    for (rows, cols, blocks) in shapes {
        let batch = three_of::<bf16>(rows, cols);
        let op = CrossEntropy::default();
        let uploaded = Uploaded::new(gpu, &batch, How::default());
        let (got, launches) =
            cuda_emulator::record(|| loss::with_gradient(gpu, &op, &batch, &uploaded));
        let got = got?;
        let launch = named(&launches, "cluster")?;
        assert_eq!(launch.grid.0, rows as u32 * blocks);
        let (row, all) = (2 * cols as u64, 2 * (rows * cols) as u64);
        let bytes = moved(launch, 2 * rows * cols);
        if bytes != (3 * row, all) {
            return fail(format!("{rows} rows of {cols}: {bytes:?}"));
        }
        let expected = loss::expected(&op, &batch, &[]);
        within((rows, cols), loss::check(&op, &batch, &expected, &got))?;
        if rows <= 512 {
            let two = loss::forward_backward(gpu, &op, &batch, &uploaded)?;
            same("cluster", &got, &two)?;
        }
    }
    Ok(())
}

/// What calls launch: sums over the chunks of rows, 256 each, take no launch of their own where a kernel comes before.
fn launches(gpu: &Gpu, _full: bool) -> Outcome {
    const CLUSTER_COLS: usize = 8 * STEP_BYTES / size_of::<bf16>() - 8;
    let plain = CrossEntropy::default().normalizer(Normalizer::None);
    let kept = CrossEntropy::default();
    for (op, rows, cols, want) in [
        (plain, 600, 33, &["fused", "finish"] as &[_]),
        (plain, 7, CLUSTER_COLS, &["cluster", "finish"]),
        (kept, 600, 33, &["finish", "totals", "fused", "finish"]),
        (kept, 7, CLUSTER_COLS, &["finish", "cluster", "finish"]),
        (kept, 7, 33, &["finish", "fused", "finish"]),
    ] {
        let batch = three_of::<bf16>(rows, cols);
        let uploaded = Uploaded::new(gpu, &batch, How::default());
        let (results, launches) =
            cuda_emulator::record(|| loss::with_gradient(gpu, &op, &batch, &uploaded));
        results?;
        assert_eq!(tasks(&launches), want, "in place, {rows} x {cols}");
        let (results, launches) =
            cuda_emulator::record(|| loss::forward_backward(gpu, &op, &batch, &uploaded));
        results?;
        assert_eq!(tasks(&launches), ["stats", "finish", "gradient"], "{rows}");
    }
    Ok(())
}

/// The tasks of launches, in their order.
fn tasks(launches: &[LaunchReport]) -> Vec<&str> {
    let names = launches.iter().map(|launch| launch.kernel.as_str());
    names.filter_map(|name| name.split('_').nth(2)).collect()
}

/// A cluster has as many blocks as are asked for, and its rows take turns: within the bounds, with the same bits on every
/// grid.
fn blocks_of_a_cluster_are_a_choice(gpu: &Gpu, _full: bool) -> Outcome {
    const ROWS: usize = 7;
    const COLS: usize = 8 * STEP_BYTES / size_of::<bf16>() - 8;
    let batch = three_of::<bf16>(ROWS, COLS);
    let op = CrossEntropy::default();
    let expected = loss::expected(&op, &batch, &[]);
    for (cluster, blocks) in [
        (None, 8),
        (Some(1), 1),
        (Some(2), 2),
        (Some(3), 4),
        (Some(99), 8),
    ] {
        let run = |grid, clusters: u32| {
            let how = How {
                blocks: grid,
                cluster: cluster.and_then(NonZeroU32::new),
                ..How::default()
            };
            let uploaded = Uploaded::new(gpu, &batch, how);
            let (results, launches) =
                cuda_emulator::record(|| loss::with_gradient(gpu, &op, &batch, &uploaded));
            if blocks > 1 {
                assert_eq!(named(&launches, "cluster")?.grid.0, clusters * blocks);
            }
            Ok::<_, Failed>(results?)
        };
        let got = run(Blocks::All, ROWS as u32)?;
        within((cluster, blocks), loss::check(&op, &batch, &expected, &got))?;
        for (grid, clusters) in [
            (Blocks::Resident, ROWS as u32),
            (Blocks::AtMost(NonZeroU32::MIN), 1),
            (NonZeroU32::new(2 * blocks).into(), 2),
        ] {
            same(
                &format!("{cluster:?}, {grid:?}"),
                &run(grid, clusters)?,
                &got,
            )?;
        }
    }
    Ok(())
}

/// Two multiprocessors hold three blocks each: a cluster of 4, and none of 8. Rows in 4 parts are read once there
/// too; those in 8 are read twice; the bits are the same.
fn clusters_are_no_larger_than_fit(gpu: &Gpu, _full: bool) -> Outcome {
    // Eight steps wherever a row begins.
    const COLS: usize = 8 * STEP_BYTES / size_of::<bf16>() - 8;
    let two_sms = device(2)?;
    for (rows, blocks, task) in [(200, 4, "cluster"), (128, 8, "gradient")] {
        let batch = three_of::<bf16>(rows, COLS);
        let op = CrossEntropy::default();
        let run = |gpu: &Gpu, task| {
            let uploaded = Uploaded::new(gpu, &batch, How::default());
            let (results, launches) =
                cuda_emulator::record(|| loss::with_gradient(gpu, &op, &batch, &uploaded));
            let launch = named(&launches, task)?;
            assert_eq!(launch.grid.0, rows as u32 * blocks, "{}", gpu.name);
            Ok::<_, Failed>(results?)
        };
        let expected = run(gpu, "cluster")?;
        same("two multiprocessors", &run(&two_sms, task)?, &expected)?;
    }
    Ok(())
}

/// Where a third of a multiprocessor's shared memory holds a row, one block reads it once; where it holds a part of
/// it, a cluster does. A device without clusters reads rows once that fit into the shared memory of a block, and
/// others twice.
fn on_chip_and_not<T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    const ROWS: usize = UNCUT_ROWS;
    let per_pack = 16 / size_of::<T>();
    if !full && T::DTYPE != xact::Dtype::F32 {
        return Ok(());
    }
    let [h100, a100] = devices(gpu)?;
    // Less what is set aside: for static shared memory, and by the system for each of three blocks. Parts are whole
    // steps.
    let third = (228 * 1024 / 3 - 2048) / STEP_BYTES * STEP_BYTES;
    let whole = 163 * 1024 - 1024;
    for (gpu, room, beyond, reads) in [(h100, third, "cluster", 1), (a100, whole, "fused", 2)] {
        let fits = room / size_of::<T>() - (per_pack - 1);
        for (cols, task, reads) in [(fits, "fused", 1), (fits + 1, beyond, reads)] {
            let batch = three_of::<T>(ROWS, cols);
            let op = CrossEntropy::default();
            // A row of one column too many is one wherever it begins.
            for offset in 0..=usize::from(reads == 1) {
                let how = How {
                    logits: Place { offset, gap: 0 },
                    all_outputs: false,
                    ..How::default()
                };
                let uploaded = Uploaded::new(&gpu, &batch, how);
                let (results, launches) =
                    cuda_emulator::record(|| loss::with_gradient(&gpu, &op, &batch, &uploaded));
                let once = results?;
                let row = (cols * size_of::<T>()) as u64;
                let got = moved(named(&launches, task)?, ROWS * row as usize);
                if got != (3 * reads * row, ROWS as u64 * row) {
                    return fail(format!("{cols} columns on {}: {got:?}", gpu.name));
                }
                if task == "fused" {
                    let two = loss::forward_backward(&gpu, &op, &batch, &uploaded)?;
                    same("fused", &once, &two)?;
                } else {
                    // Cut finer than without a gradient: the bits are others.
                    let all_outputs = true;
                    let uploaded = Uploaded::new(&gpu, &batch, How { all_outputs, ..how });
                    let again = loss::with_gradient(&gpu, &op, &batch, &uploaded)?;
                    let expected = loss::expected(&op, &batch, &[]);
                    within(cols, loss::check(&op, &batch, &expected, &again))?;
                }
            }
        }
    }
    Ok(())
}

/// The loss of rows that are all but certain is within 1e-6 of itself, over gaps at which the exponent rounds
/// as badly as it can, in every mode.
fn confident_rows(gpu: &Gpu, full: bool) -> Outcome {
    let op = CrossEntropy::default().normalizer(Normalizer::None);
    let gaps = if full { 10_000 } else { 1200 };
    let mut worst_of = Vec::new();
    for others in [1, 3, 1000] {
        let gaps = if others > 10 { gaps / 50 } else { gaps };
        let cols = others + 1;
        let mut random = Random(others as u64);
        let mut logits = vec![0.0f32; gaps * cols];
        for (i, row) in logits.chunks_mut(cols).enumerate() {
            let top = random.uniform() as f32 * 10.0;
            // p from ½ to 1 − 1e-7 and beyond.
            let gap = (others as f32).ln() + 0.01 + 22.0 * i as f32 / gaps as f32;
            row.fill(top - gap);
            row[0] = top;
        }
        let batch = Batch::new(logits, cols, vec![0; gaps]);
        let expected = loss::expected(&op, &batch, &[]);
        for &approx in modes(gpu) {
            let got = with_approx(approx, || both(gpu, &op, &batch, How::default()))?;
            let worst = loss::check(&op, &batch, &expected, &got);
            worst_of.push((others, approx, worst));
        }
    }
    if worst_of.iter().all(|(.., worst)| worst.ok()) {
        Ok(())
    } else {
        fail(format!("{worst_of:#?}"))
    }
}

/// The masked losses of tests/golden/goldfish.json, from PyTorch.
fn goldfish_golden(gpu: &Gpu, _full: bool) -> Outcome {
    check_masked_golden(|op, batch| {
        checked(gpu, op, batch, How::default()).map_err(|e| format!("{e:?}"))
    })?;
    Ok(())
}

/// More chunks of rows than the block that adds them up has threads. Few rows are read, so that it does not take long.
fn many_rows(gpu: &Gpu, _full: bool) -> Outcome {
    let op = CrossEntropy::default();
    let mut batch = batch::<f32>(77, 257 * 256 + 1, 3, 3, 2.0);
    for (r, label) in batch.labels.iter_mut().enumerate() {
        if r % 61 != 0 {
            *label = op.ignore_index;
        }
    }
    checked(gpu, &op, &batch, How::default())?;
    Ok(())
}

/// Rows further apart than 32 bits count elements.
fn beyond_32_bits(gpu: &Gpu, _full: bool) -> Outcome {
    loss::far_apart::<f32>(gpu)?;
    loss::far_apart::<f16>(gpu)?;
    loss::far_apart::<bf16>(gpu)?;
    Ok(())
}
