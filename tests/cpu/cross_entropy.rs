//! Cross-entropy: accuracy over shapes and options, both ways to the gradient, special values, ranks, Goldfish; the same
//! bits in every instruction set and with any number of threads; errors.

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
use xact_dev::loss_cases::{any_call, batch, check_masked_golden, options, special_rows};
use xact_dev::loss_check::{Batch, Results, check, expected, same, within};
use xact_dev::loss_cpu::{self, How};
use xact_dev::loss_trials::{self, Backend, Variant};
use xact_dev::same::bits;

/// Adds the trials of cross-entropy.
pub(crate) fn add_to(table: &mut Table) {
    let mut table = Prefixed(table);
    table.of_type::<f32>();
    table.of_type::<f16>();
    table.of_type::<bf16>();
    // Up to where the loss is almost subnormal.
    table.add("confident_rows", || {
        loss_trials::confident_rows(&OnCpu, 85.0)
    });
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

/// Prefixes the name of a trial with the name of the op.
struct Prefixed<'a>(&'a mut Table);

impl Prefixed<'_> {
    fn add(&mut self, name: impl Display, test: impl FnOnce() -> Outcome + Send + 'static) {
        self.0.add(format!("cross_entropy::{name}"), test);
    }

    fn of_type<T: Element>(&mut self) {
        for (name, op) in options() {
            let name = |what: &str| format!("{what}::{name}::{}", T::DTYPE);
            self.add(name("accuracy"), move || {
                loss_trials::accuracy::<T>(&OnCpu, &op)
            });
            self.add(name("same_bits"), move || same_bits::<T>(&op));
        }
        macro_rules! tests {
            ($($name:ident),+ $(,)?) => {$(
                self.add(format!("{}::{}", stringify!($name), T::DTYPE), $name::<T>);
            )+};
        }
        tests![any_shape_and_options, the_first_of_equal_logits, goldfish,];
        loss_trials::for_each::<OnCpu, T>(|name, trial| self.add(name, move || trial(&OnCpu)));
    }
}

fn full() -> bool {
    std::env::var("XACT_FULL").is_ok_and(|v| v == "1")
}

/// The CPU backend, in the trials that every backend must pass.
struct OnCpu;

impl Backend for OnCpu {
    const STRIDES: &'static [i64] = &[1, 2, 7];

    fn full(&self) -> bool {
        full()
    }

    fn is_slow(&self) -> bool {
        false
    }

    fn ways<T: Element>(
        &self,
        op: &CrossEntropy,
        batch: &Batch<T>,
        variant: Variant,
    ) -> [xact::Result<Results<T>>; 2] {
        let how = How {
            gaps: [variant.gap, variant.gap.saturating_sub(1)],
            narrow: variant.narrow,
            ..How::default()
        };
        [
            loss_cpu::forward_backward(op, batch, how),
            loss_cpu::with_gradient(op, batch, how),
        ]
    }

    fn sharded<T: Element>(
        &self,
        op: &CrossEntropy,
        batch: &Batch<T>,
        widths: &[usize],
        _: Variant,
    ) -> xact::Result<Vec<Results<T>>> {
        loss_cpu::sharded(op, batch, widths)
    }

    fn in_every_mode(&self, act: &dyn Fn() -> Outcome) -> Outcome {
        act()
    }
}

/// Runs both ways to the gradient, which must give the same bits.
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

/// Runs both ways, and compares them with the reference.
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

/// The bits are the same in every instruction set and on pools of several sizes, with every special value and in long rows:
/// three threads share the five rows by their parts, and fewer threads take whole rows. In the last batch, a part of each row
/// has no classes.
fn same_bits<T: Element>(op: &CrossEntropy) -> Outcome {
    let (special, _) = special_rows::<T>();
    let mut long = batch::<T>(1, 5, 70_003, 65_000, 4.0);
    long.labels[1] = -100;
    long.labels[2] = -1;
    let of_classes = op.vocab(65_000);
    for (op, batch) in [(op, &special), (op, &long), (&of_classes, &long)] {
        let results = || loss_cpu::forward_backward(op, batch, How::default());
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
        within(op, check(op, batch, &expected(op, batch, &[]), &first))?;
    }
    Ok(())
}

/// Random combinations of shapes, gaps, label types, options, weights, upstream gradients and outputs.
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

/// The argmax is the first of equal logits, whether it is the target or not, in any block.
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

/// Rows that the loss itself drops: their loss is summed separately on request. Otherwise they have the same bits as rows
/// of weight 0.
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
            // With weights, a dropped row is the same as a masked one.
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

/// Two micro-batches, both divided by their total of four tokens: the sum of the means is the mean over all four.
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

/// `logits[:, :-1]`: rows in groups give the same results as consecutive rows, and the memory between the groups is
/// unchanged.
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
    // Rows in groups with gaps, and the same rows without gaps.
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
    // An incomplete group, and one that overlaps the next.
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

/// Wrong lengths, pitches and options are typed errors, and nothing is written.
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
    /// Runs a forward that computes the loss, with one change.
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
    // A row pitch of less than the columns, and a length that is no whole number of rows.
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

    /// Runs a backward with one change.
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
    // Arguments with rows have the shape of the call, and logits without gaps are too long for it.
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
