//! Cross-entropy on the device of this process: accuracy over shapes, options and modes, both ways to the gradient,
//! placements, schedules, ranks, special values, errors, traffic.
//!
//! `XACT_DEVICE=auto|gpu|emulated[:MODEL]` selects the device; `XACT_FULL=1` runs all variants.

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
use xact_dev::loss_cases::{any_call, batch, check_masked_golden, everything, options};
use xact_dev::loss_check::{same, within};
use xact_dev::loss_trials::{self, Backend, Variant};
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
    // Up to 1 − 1e-7 and beyond.
    table.add("confident_rows".into(), false, |gpu, full| {
        loss_trials::confident_rows(&OnDevice::new(gpu, full), 22.0)
    });
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

/// Prefixes the name of a trial with the name of the op.
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
                move |gpu, full| loss_trials::accuracy::<T>(&OnDevice::new(gpu, full), &op),
            );
        }
        macro_rules! tests {
            ($($needs_emulator:literal $name:ident),+ $(,)?) => {$(
                let name = format!("{}::{}", stringify!($name), T::DTYPE);
                self.add(name, $needs_emulator, $name::<T>);
            )+};
        }
        tests![
            false any_shape_and_options,
            false places,
            false the_first_of_equal_logits,
            false few_long_rows,
            false stats_of_the_cpu_are_those_of_the_device,
            false dropped_rows,
            false fused_goldfish_is_the_mask,
            true same_bits_under_any_schedule,
            true traffic,
            true on_chip_and_not,
        ];
        loss_trials::for_each::<OnDevice, T>(|name, trial| {
            self.add(name, false, move |gpu, full| {
                trial(&OnDevice::new(gpu, full))
            });
        });
    }
}

/// The device, in the trials that every backend must pass.
struct OnDevice {
    gpu: Gpu,
    full: bool,
}

impl OnDevice {
    fn new(gpu: &Gpu, full: bool) -> OnDevice {
        let gpu = gpu.clone();
        OnDevice { gpu, full }
    }
}

fn how(variant: Variant) -> How {
    let Variant {
        offset,
        gap,
        narrow,
    } = variant;
    How {
        logits: Place { offset, gap },
        labels: if narrow { IdType::I32 } else { IdType::I64 },
        ..How::default()
    }
}

impl Backend for OnDevice {
    const STRIDES: &'static [i64] = &[1, 2, 7, -1, -3];

    fn full(&self) -> bool {
        self.full
    }

    fn is_slow(&self) -> bool {
        self.gpu.emulated
    }

    fn ways<T: Element>(
        &self,
        op: &CrossEntropy,
        batch: &Batch<T>,
        variant: Variant,
    ) -> [xact::Result<Results<T>>; 2] {
        let uploaded = Uploaded::new(&self.gpu, batch, how(variant));
        [
            loss::forward_backward(&self.gpu, op, batch, &uploaded),
            loss::with_gradient(&self.gpu, op, batch, &uploaded),
        ]
    }

    fn sharded<T: Element>(
        &self,
        op: &CrossEntropy,
        batch: &Batch<T>,
        widths: &[usize],
        variant: Variant,
    ) -> xact::Result<Vec<Results<T>>> {
        loss::sharded(&self.gpu, op, batch, widths, how(variant))
    }

    fn in_every_mode(&self, act: &dyn Fn() -> Outcome) -> Outcome {
        let mut modes = modes(&self.gpu).iter();
        modes.try_for_each(|&approx| with_approx(approx, act))
    }
}

/// The modes of the approximate instructions. A real device has one mode.
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

/// Runs both ways to the gradient, which must give the same bits unless a cluster divides the rows into smaller parts.
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

/// Runs both ways, and compares them with the reference.
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

/// Random combinations of shapes, placements, label types, options, weights, upstream gradients and grids.
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

/// The gradient has the same bits for any placement of its tensors, also in place, for any label type and grid. The
/// statistics depend only on the placement of the logits.
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

/// The number of rows from which they are not divided: more than half the number of blocks that rows are divided into.
const UNCUT_ROWS: usize = 513;

/// The argmax is the first of equal logits, wherever the row begins, and whichever threads read them.
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
        // Enough rows that they are not divided, and few enough that they are.
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

/// A row that is so long that many blocks share it.
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

/// The statistics of the CPU backend equal those of the device, except for the rounding of the sums, and it can finish from
/// those of the device. Ranks of both kinds may therefore be mixed.
fn stats_of_the_cpu_are_those_of_the_device<T: Element>(gpu: &Gpu, _full: bool) -> Outcome {
    // The difference of the sums, relative to their terms, that corresponds to 4 ulp of the loss on each side.
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

/// A strategy that drops about half of the labels.
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

/// Dropped rows: their loss is summed separately on request, and the loss of all rows is the sum of both.
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

/// A decision in the loss gives the same bits as a mask in the form of weights.
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
        // With weights, a dropped row is the same as a masked one.
        fused.summary.dropped = 0;
        same(&format!("{strategy:?}"), &fused, &weights)?;
    }
    Ok(())
}

/// The bits are the same for any order in which blocks, warps and lanes run. The launch would fail on a race, a read of
/// unwritten memory or an access outside a buffer.
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
        // Rows of 8 parts. If there is only one cluster, it exchanges the statistics of four rows, one after the other.
        shapes.push((5, 8 * STEP_BYTES / size_of::<T>() - 3));
        // Two chunks, of which a block does the last and then adds both.
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

/// The elements of a row that a block processes in one step: a vector per thread.
const STEP_BYTES: usize = 256 * 16;

/// The bytes that a launch reads from and writes to the tensors of logits, which are the buffers of at least `len` bytes.
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

/// Panics unless a launch reads and writes these numbers of bytes of the logits, in whole vectors only and in the minimum
/// number of sectors.
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

/// The device of the process, and the emulator's A100.
fn devices(gpu: &Gpu) -> Result<[Gpu; 2], Failed> {
    let a100 = device(1)?;
    assert!(!gpu.name.contains("A100") && a100.name.contains("A100"));
    Ok([gpu.clone(), a100])
}

/// The forward reads each byte of a kept row once, and so does the backward; other rows are not read. Each byte of the
/// gradient is written once. Accesses are whole vectors, in the minimum number of sectors.
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
                // In one call, clusters read the kept rows once, and a device without clusters reads them twice.
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

/// `rows` rows of which three are kept, including the first and the last.
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

/// Rows with the lengths of real vocabularies are read once and written once, in parts of 32 KiB by 8 blocks, with the same
/// bits as the other way to the gradient.
fn clusters_keep_long_rows(gpu: &Gpu, full: bool) -> Outcome {
    let mut shapes = vec![(114, 131_072, 8)];
    if full {
        // There are so many rows that clusters have the minimum number of parts, so the bits differ.
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

/// The launches of calls: the sums over the chunks of rows, of 256 each, need no separate launch if a kernel precedes them.
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

/// A cluster has as many blocks as requested, and its rows take turns. The results are within the bounds, and have the same
/// bits on every grid.
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

/// Two multiprocessors hold three blocks each, so a cluster of 4 fits and one of 8 does not. Rows in 4 parts are read once,
/// rows in 8 parts twice, with the same bits.
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

/// If a row fits into a third of a multiprocessor's shared memory, one block reads it once; if a part of it does, a cluster
/// reads it once. A device without clusters reads a row once if it fits into the shared memory of a block, else twice.
fn on_chip_and_not<T: Element>(gpu: &Gpu, full: bool) -> Outcome {
    const ROWS: usize = UNCUT_ROWS;
    let per_pack = 16 / size_of::<T>();
    if !full && T::DTYPE != xact::Dtype::F32 {
        return Ok(());
    }
    let [h100, a100] = devices(gpu)?;
    // Less the static shared memory, and what the system reserves for each of three blocks. Parts are whole steps.
    let third = (228 * 1024 / 3 - 2048) / STEP_BYTES * STEP_BYTES;
    let whole = 163 * 1024 - 1024;
    for (gpu, room, beyond, reads) in [(h100, third, "cluster", 1), (a100, whole, "fused", 2)] {
        let fits = room / size_of::<T>() - (per_pack - 1);
        for (cols, task, reads) in [(fits, "fused", 1), (fits + 1, beyond, reads)] {
            let batch = three_of::<T>(ROWS, cols);
            let op = CrossEntropy::default();
            // A row with one column more exceeds the limit wherever it begins.
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
                    // The row is divided into smaller parts than without a gradient, so the bits differ.
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

/// The masked losses of tests/golden/goldfish.json, from PyTorch.
fn goldfish_golden(gpu: &Gpu, _full: bool) -> Outcome {
    check_masked_golden(|op, batch| {
        checked(gpu, op, batch, How::default()).map_err(|e| format!("{e:?}"))
    })?;
    Ok(())
}

/// There are more chunks of rows than the block that adds them has threads. Few rows are read, to save time.
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

/// The pitch between rows exceeds 32 bits in elements.
fn beyond_32_bits(gpu: &Gpu, _full: bool) -> Outcome {
    loss::far_apart::<f32>(gpu)?;
    loss::far_apart::<f16>(gpu)?;
    loss::far_apart::<bf16>(gpu)?;
    Ok(())
}
