//! The language model's head: the bits of cross-entropy over whole logits, whatever the chunks and the list of kept rows;
//! accuracy; gradients that are set and added; ranks; the same bits in every instruction set and with any number of threads;
//! special values; costs; errors.
//!
//! The products of the tests are plain loops over their definition: blocks of 256 terms, each a chain of fused
//! multiply-adds, added in their order.

use std::sync::Mutex;

use super::{Outcome, Table};
use half::{bf16, f16};
use libtest_mimic::Failed;
use xact::cpu::linear_cross_entropy as head;
use xact::cpu::{Input, InstructionSet, Output, cross_entropy, kept_rows};
use xact::loss::cross_entropy::RowStatus;
use xact::loss::goldfish::Tokens;
use xact::loss::linear_cross_entropy::Target;
use xact::{
    CrossEntropy, CrossEntropySummary, Element, Error, Goldfish, LinearCrossEntropy, Logits,
    ParamOf, Rows, Shard, Strategy,
};
use xact_dev::inputs::Random;
use xact_dev::linear_golden;
use xact_dev::loss_cases::options;
use xact_dev::same::bits;

/// Adds the trials of the head.
pub(crate) fn add_to(table: &mut Table) {
    of_type::<f32>(table);
    of_type::<f16>(table);
    of_type::<bf16>(table);
    let mut add = |name: &str, test: fn() -> Outcome| {
        table.add(format!("linear_cross_entropy::{name}"), test);
    };
    add("golden", golden);
    add("goldfish", goldfish);
    add("kept_rows", lists);
    add("costs", costs);
    add("errors", errors);
}

fn of_type<T: Element + ParamOf<T>>(table: &mut Table) {
    let name = |what: &str| format!("linear_cross_entropy::{what}::{}", T::DTYPE);
    for (of_options, op) in options() {
        let name = |what: &str| name(&format!("{what}::{of_options}"));
        table.add(name("whole_logits"), move || whole_logits::<T>(&op));
        table.add(name("accuracy"), move || accuracy::<T>(&op));
    }
    macro_rules! tests {
        ($($test:ident),+ $(,)?) => {$(
            table.add(name(stringify!($test)), $test::<T>);
        )+};
    }
    tests![same_bits, ranks, pitches, special_values, no_rows];
}

/// A batch of the head on the host.
#[derive(Clone)]
struct Batch<T> {
    hidden: Vec<T>,
    weight: Vec<T>,
    labels: Vec<i64>,
    weights: Option<Vec<f32>>,
    dloss: Option<Vec<f32>>,
    /// H, and the rows of the weights.
    cols: usize,
    classes: usize,
}

impl<T: Element> Batch<T> {
    /// A batch in which `masked` per cent of the rows are ignored, and the others have logits of a deviation of about 2.
    fn new(seed: u64, [rows, cols, classes]: [usize; 3], masked: u64) -> Batch<T> {
        let mut random = Random(seed);
        let hidden = random.normal(rows * cols, 1.0);
        let weight = random.normal(classes * cols, 2.0 / (cols as f64).sqrt());
        let labels = (0..rows).map(|_| match random.bits() % 100 < masked {
            true => -100,
            false => (random.bits() % classes.max(1) as u64) as i64,
        });
        Batch {
            hidden,
            weight,
            labels: labels.collect(),
            weights: None,
            dloss: None,
            cols,
            classes,
        }
    }

    fn weighted(mut self) -> Self {
        let mut random = Random(17);
        let n = self.labels.len();
        let mut weights = random.normal::<f32>(n, 1.0);
        weights.iter_mut().step_by(5).for_each(|w| *w = 0.0);
        (self.weights, self.dloss) = (Some(weights), Some(random.normal(n, 1.0)));
        self
    }

    /// The rows that need logits.
    fn kept(&self) -> Vec<usize> {
        let weight = |row: usize| self.weights.as_ref().map_or(1.0, |w| w[row]);
        let rows = 0..self.labels.len();
        rows.filter(|&row| self.labels[row] != -100 && weight(row) != 0.0)
            .collect()
    }
}

/// The results of a call.
#[derive(Debug, PartialEq)]
struct Results<T> {
    /// loss, z-loss and lse.
    rows: [Vec<u32>; 3],
    argmax: Vec<i32>,
    saved: Vec<u8>,
    summary: CrossEntropySummary,
    d_hidden: Vec<T>,
    d_weight: Vec<f32>,
}

fn line<T: Element>(len: usize) -> Vec<T> {
    vec![T::from_f64(7.0); len]
}

/// Adds the weights of the rows and the list.
macro_rules! with_rows {
    ($call:expr, $batch:expr, $list:expr) => {{
        let mut call = $call;
        if let Some(weights) = &$batch.weights {
            call = call.weights(weights);
        }
        if let Some(list) = $list {
            call = call.kept_rows(list);
        }
        call
    }};
}

/// Runs the call with all outputs, and the forward and the backward, which must give the same bits.
fn run<T: Element>(
    op: &LinearCrossEntropy,
    batch: &Batch<T>,
    list: Option<&[i32]>,
) -> Result<Results<T>, Failed> {
    let n = batch.labels.len();
    let two = |at_once: bool| -> Result<Results<T>, Failed> {
        let [mut loss, mut z_loss, mut lse] = [(); 3].map(|()| line::<f32>(n));
        let (mut argmax, mut saved) = (vec![7; n], vec![7; op.loss.saved_bytes(n as u64) as usize]);
        let mut d_hidden = line::<T>(n * batch.cols);
        let mut d_weight = line::<f32>(batch.weight.len());
        macro_rules! outputs {
            ($call:expr) => {
                with_rows!($call, batch, list)
                    .loss(&mut loss)
                    .z_loss(&mut z_loss)
                    .lse(&mut lse)
                    .argmax(&mut argmax)
                    .saved(&mut saved)
            };
        }
        macro_rules! gradients {
            ($call:expr) => {{
                let mut call = $call.d_hidden(&mut d_hidden).d_weight(&mut d_weight);
                if let Some(dloss) = &batch.dloss {
                    call = call.dloss(dloss);
                }
                call.run()?
            }};
        }
        let (hidden, weight, labels) = (&batch.hidden, &batch.weight, &batch.labels);
        let summary = if at_once {
            gradients!(outputs!(head::forward_with_gradient(
                op, hidden, weight, labels
            )))
        } else {
            let summary = outputs!(head::forward(op, hidden, weight, labels)).run()?;
            let divisor = summary.normalizer;
            let call = head::backward(op, hidden, weight, labels, &saved, divisor);
            gradients!(with_rows!(call, batch, list));
            summary
        };
        Ok(Results {
            rows: [loss, z_loss, lse].map(|v| v.iter().map(|v| v.to_bits()).collect()),
            argmax,
            saved,
            summary,
            d_hidden,
            d_weight,
        })
    };
    let (one, two) = (two(true)?, two(false)?);
    same("forward and backward", &two, &one)?;
    Ok(one)
}

fn same<T: Element>(what: &str, got: &Results<T>, expected: &Results<T>) -> Outcome {
    for (name, is_same) in [
        ("rows", got.rows == expected.rows),
        ("argmax", got.argmax == expected.argmax),
        ("saved", got.saved == expected.saved),
        (
            "summary",
            format!("{:?}", got.summary) == format!("{:?}", expected.summary),
        ),
        ("d_hidden", bits(&got.d_hidden) == bits(&expected.d_hidden)),
        ("d_weight", bits(&got.d_weight) == bits(&expected.d_weight)),
    ] {
        if !is_same {
            return Err(format!("{what}: {name} differs").into());
        }
    }
    Ok(())
}

/// The sum of a·b over `terms`, added to `before`.
fn sum(terms: usize, before: Option<f32>, term: impl Fn(usize) -> (f32, f32)) -> f32 {
    let mut sum = before;
    for first in (0..terms).step_by(256) {
        let mut of_block = 0.0f32;
        for i in first..terms.min(first + 256) {
            let (a, b) = term(i);
            of_block = a.mul_add(b, of_block);
        }
        sum = Some(sum.map_or(of_block, |sum| sum + of_block));
    }
    sum.unwrap_or(0.0)
}

fn f32s<T: Element>(values: &[T]) -> Vec<f32> {
    values.iter().map(|v| v.to_f64() as f32).collect()
}

/// The results from whole logits in Z, by cross-entropy and the definitions of the products. dW is summed in chunks of
/// `chunk` kept rows.
fn by_whole_logits<T: Element, Z: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    chunk: usize,
) -> Result<Results<T>, Failed> {
    let (n, cols, classes) = (batch.labels.len(), batch.cols, batch.classes);
    let (x, w) = (f32s(&batch.hidden), f32s(&batch.weight));
    let mut logits: Vec<Z> = Vec::new();
    for row in 0..n {
        for class in 0..classes {
            let z = sum(cols, None, |h| (x[row * cols + h], w[class * cols + h]));
            logits.push(Z::from_f64(z.into()));
        }
    }
    let [mut loss, mut z_loss, mut lse] = [(); 3].map(|()| line::<f32>(n));
    let (mut argmax, mut saved) = (vec![7; n], vec![7; op.saved_bytes(n as u64) as usize]);
    let rows = Rows::new(n, classes);
    let mut call =
        cross_entropy::forward_with_gradient(op, Output::rows(&mut logits, rows), &batch.labels);
    if let Some(weights) = &batch.weights {
        call = call.weights(weights);
    }
    if let Some(dloss) = &batch.dloss {
        call = call.dloss(dloss);
    }
    let summary = call
        .loss(&mut loss)
        .z_loss(&mut z_loss)
        .lse(&mut lse)
        .argmax(&mut argmax)
        .saved(&mut saved)
        .run()?;
    let dz = f32s(&logits);
    let kept = batch.kept();
    let mut d_hidden = vec![T::from_f64(0.0); n * cols];
    for &row in &kept {
        for h in 0..cols {
            let d = sum(classes, None, |j| (dz[row * classes + j], w[j * cols + h]));
            d_hidden[row * cols + h] = T::from_f64(d.into());
        }
    }
    let mut d_weight = vec![0.0; classes * cols];
    for (i, d) in d_weight.iter_mut().enumerate() {
        let (class, h) = (i / cols, i % cols);
        let mut total = None;
        for rows in kept.chunks(chunk) {
            let term = |r: usize| (dz[rows[r] * classes + class], x[rows[r] * cols + h]);
            total = Some(sum(rows.len(), total, term));
        }
        *d = total.unwrap_or(0.0);
    }
    Ok(Results {
        rows: [loss, z_loss, lse].map(|v| v.iter().map(|v| v.to_bits()).collect()),
        argmax,
        saved,
        summary,
        d_hidden,
        d_weight,
    })
}

/// Every result has the bits of cross-entropy over whole logits: for masks of 0, 25, 98 and 100 %, every size of chunk, no
/// list, the exact one, and one with more rows, padding and another order.
fn whole_logits<T: Element>(op: &CrossEntropy) -> Outcome {
    let shapes = [
        [1, 1, 1],
        [7, 7, 1],
        [3, 1, 7],
        [33, 100, 100],
        [40, 300, 70],
        [300, 7, 60],
        [15, 20, 1100],
        [5, 600, 33],
    ];
    for (i, shape) in shapes.into_iter().enumerate() {
        for masked in [0, 25, 98, 100] {
            let seed = 100 * i as u64 + masked;
            let mut batch = Batch::<T>::new(seed, shape, masked);
            if masked == 25 {
                batch = batch.weighted();
            }
            let n = batch.labels.len();
            let kept = batch.kept();
            let exact: Vec<i32> = kept.iter().map(|&row| row as i32).collect();
            let mut more = vec![-1];
            more.extend(
                (0..n as i32)
                    .rev()
                    .filter(|row| exact.contains(row) || row % 2 == 0),
            );
            more.push(-1);
            for logits in [Logits::F32, Logits::Narrow] {
                for chunk in [n.max(1), 1, 3, 16] {
                    let expected = match logits {
                        Logits::F32 => by_whole_logits::<T, f32>(op, &batch, chunk)?,
                        _ => by_whole_logits::<T, T>(op, &batch, chunk)?,
                    };
                    let mut head = LinearCrossEntropy::new(*op).logits(logits);
                    if chunk < n {
                        head = head.chunk_rows(chunk as u64);
                    }
                    for list in [None, Some(&exact[..]), Some(&more)] {
                        let what = format!("{shape:?}, {masked} %, chunks of {chunk}, {list:?}");
                        let got = run(&head, &batch, list)?;
                        same(&what, &got, &expected)?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// The targets of a batch for the reference.
fn targets<T: Element>(op: &CrossEntropy, batch: &Batch<T>, divisor: f64) -> Vec<Option<Target>> {
    let target = |row: usize| {
        let weight = batch.weights.as_ref().map_or(1.0, |w| w[row]);
        let dloss = batch.dloss.as_ref().map_or(1.0, |d| d[row]);
        let label = batch.labels[row];
        let status = op.row_status(label, weight, false, batch.classes as u64);
        (status == RowStatus::Kept)
            .then(|| Target::new(label as usize, weight.into(), f64::from(dloss) / divisor))
    };
    (0..batch.labels.len()).map(target).collect()
}

/// Whether `got` is within `bound` of `exact`, with one rounding to T.
fn within<T: Element>(got: T, exact: f64, bound: f64) -> bool {
    let ends = [exact - bound, exact + bound].map(|end| T::from_f64(end).to_f64());
    (ends[0]..=ends[1]).contains(&got.to_f64())
}

fn all_within<T: Element>(what: &str, got: &[T], exact: &[f64], bounds: &[f64]) -> Outcome {
    assert_eq!((got.len(), got.len()), (exact.len(), bounds.len()));
    for (i, (&got, (&exact, &bound))) in got.iter().zip(exact.iter().zip(bounds)).enumerate() {
        if !within(got, exact, bound) {
            return Err(format!("{what}[{i}]: {got:?} for {exact:e} ± {bound:e}").into());
        }
    }
    Ok(())
}

/// The results are within the bounds of the f64 reference, and the gradient of the weights in their type and added to what was
/// there.
fn accuracy<T: Element + ParamOf<T>>(op: &CrossEntropy) -> Outcome {
    for (i, shape) in [[37, 40, 300], [9, 300, 41]].into_iter().enumerate() {
        let batch = Batch::<T>::new(7 + i as u64, shape, 25).weighted();
        for logits in [Logits::F32, Logits::Narrow] {
            let head = LinearCrossEntropy::new(*op).logits(logits);
            let got = run(&head, &batch, None)?;
            let targets = targets(op, &batch, got.summary.normalizer.into());
            let exact = head.evaluate(&batch.hidden, &batch.weight, batch.cols, &targets);
            let name = format!("{shape:?} {logits:?}");
            for (row, exact) in exact.rows.iter().enumerate() {
                let [loss, _, lse] = got.rows.each_ref().map(|v| f32::from_bits(v[row]));
                let is_near = match exact {
                    Some(row) => {
                        within(loss, row.loss, row.loss_bound)
                            && within(lse, row.lse, row.lse_bound)
                    }
                    None => (loss, lse) == (0.0, 0.0),
                };
                if !is_near {
                    return Err(format!("{name}, row {row}: {loss:e}, {lse:e}, {exact:?}").into());
                }
            }
            all_within(&name, &got.d_hidden, &exact.d_hidden, &exact.d_hidden_bound)?;
            all_within(&name, &got.d_weight, &exact.d_weight, &exact.d_weight_bound)?;

            // One rounding of the sum with what was there.
            let mut random = Random(3);
            let before: Vec<T> = random.normal(batch.weight.len(), 0.1);
            let mut d_weight = before.clone();
            let labels = &batch.labels;
            let call = head::forward_with_gradient(&head, &batch.hidden, &batch.weight, labels);
            let call = with_rows!(call, batch, None::<&[i32]>).dloss(batch.dloss.as_ref().unwrap());
            call.accumulate_d_weight(&mut d_weight).run()?;
            let sums = exact.d_weight.iter().zip(&before);
            let sums: Vec<f64> = sums.map(|(d, before)| d + before.to_f64()).collect();
            let bounds = exact.d_weight_bound.iter().zip(&before);
            // One more addition in each block of terms.
            let bounds: Vec<f64> = bounds
                .map(|(bound, before)| bound + 2f64.powi(-23) * before.to_f64().abs())
                .collect();
            all_within(&name, &d_weight, &sums, &bounds)?;
        }
    }
    Ok(())
}

/// The bits are the same in every instruction set and on pools of several sizes. The shape has several tiles in each
/// direction of each product, and the chunks of 256 rows give the gradient of the weights the same bits as one chunk.
fn same_bits<T: Element>() -> Outcome {
    let batch = Batch::<T>::new(5, [600, 530, 560], 3);
    let op = LinearCrossEntropy::new(CrossEntropy::default().label_smoothing(0.1));
    let expected = run(&op, &batch, None)?;
    let few = op.chunk_rows(256);
    same("chunks of 256", &run(&few, &batch, None)?, &expected)?;
    for set in InstructionSet::available().into_iter().rev() {
        if set.name() == "portable" && cfg!(target_arch = "x86_64") {
            // There a fused multiply-add is a call.
            let batch = Batch::<T>::new(5, [20, 270, 90], 3);
            let expected = run(&op, &batch, None)?;
            same(
                set.name(),
                &set.force(|| run(&op, &batch, None))?,
                &expected,
            )?;
            continue;
        }
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()?;
            let got = pool.install(|| set.force(|| run(&op, &batch, None)))?;
            same(
                &format!("{}, {threads} threads", set.name()),
                &got,
                &expected,
            )?;
        }
    }
    Ok(())
}

/// Ranks of any widths: the losses have the bits of cross-entropy with the same shards, and the gradients are those of whole
/// rows within the bounds.
fn ranks<T: Element>() -> Outcome {
    const V: usize = 50;
    let batch = Batch::<T>::new(11, [21, 19, V], 25).weighted();
    let (n, cols, labels) = (batch.labels.len(), batch.cols, &batch.labels);
    for op in [
        CrossEntropy::default(),
        CrossEntropy::default()
            .label_smoothing(0.1)
            .z_loss(1e-3)
            .softcap(20.0),
    ] {
        let head = LinearCrossEntropy::new(op).chunk_rows(4);
        let list: Vec<i32> = batch.kept().iter().map(|&row| row as i32).collect();
        for widths in [
            vec![50],
            vec![25, 25],
            vec![17, 1, 32],
            vec![6, 7, 6, 6, 7, 6, 6, 6],
        ] {
            let first = |rank: usize| widths[..rank].iter().sum::<usize>();
            let shard = |rank| Shard::new(first(rank) as u64, V as u64);
            let weight = |rank: usize| &batch.weight[first(rank) * cols..][..widths[rank] * cols];
            let mut gathered = Vec::new();
            for rank in 0..widths.len() {
                let mut saved = vec![0; op.saved_bytes(n as u64) as usize];
                let (hidden, weight) = (&batch.hidden, weight(rank));
                let call = head::partial(&head, hidden, weight, labels, shard(rank), &mut saved);
                with_rows!(call, batch, Some(&list)).with_argmax().run()?;
                gathered.extend(saved);
            }
            let [mut loss, mut theirs] = [(); 2].map(|()| line::<f32>(n));
            let mut argmax = vec![7; n];
            let call = head::finish(&head, labels, shard(0), &gathered);
            let call = with_rows!(call, batch, Some(&list));
            let summary = call.loss(&mut loss).argmax(&mut argmax).run()?;
            let call = cross_entropy::finish(&op, labels, shard(0), &gathered);
            let call = call.weights(batch.weights.as_ref().unwrap());
            assert_eq!(call.loss(&mut theirs).run()?.mean, summary.mean);
            assert_eq!(bits(&loss), bits(&theirs));

            let targets = targets(&op, &batch, summary.normalizer.into());
            let exact = head.evaluate(&batch.hidden, &batch.weight, cols, &targets);
            for (row, exact) in exact.rows.iter().enumerate() {
                if let Some(exact) = exact {
                    assert!(
                        within(loss[row], exact.loss, exact.loss_bound),
                        "{widths:?} {row}"
                    );
                }
            }
            let (mut total, mut error) = (vec![0.0; n * cols], vec![0.0; n * cols]);
            for (rank, &width) in widths.iter().enumerate() {
                let (mut d_hidden, mut d_weight) = (line::<T>(n * cols), line::<f32>(width * cols));
                let (hidden, weight) = (&batch.hidden, weight(rank));
                let divisor = summary.normalizer;
                let call = head::backward(&head, hidden, weight, labels, &gathered, divisor);
                let call = with_rows!(call, batch, Some(&list)).shard(shard(rank));
                let call = call.dloss(batch.dloss.as_ref().unwrap());
                call.d_hidden(&mut d_hidden).d_weight(&mut d_weight).run()?;
                let of_rank = first(rank) * cols..(first(rank) + width) * cols;
                let bounds = &exact.d_weight_bound[of_rank.clone()];
                all_within("d_weight", &d_weight, &exact.d_weight[of_rank], bounds)?;
                for (i, d) in d_hidden.iter().enumerate() {
                    total[i] += d.to_f64();
                    // Each partial is rounded.
                    error[i] += d.to_f64().abs() * 2f64.powi(T::ULP_EXPONENT - 1)
                        + 2f64.powi(T::MIN_EXPONENT + T::ULP_EXPONENT - 1);
                }
            }
            for (i, total) in total.into_iter().enumerate() {
                let used = (total - exact.d_hidden[i]).abs() / (exact.d_hidden_bound[i] + error[i]);
                assert!(
                    used <= 1.0,
                    "{widths:?}: {used} of the bound of d_hidden[{i}]"
                );
            }
        }
    }
    Ok(())
}

/// Rows with a pitch, hidden states in groups (`hidden[:, :-1]`), padding in the weights, and two more types of labels give the
/// same bits. What is between the rows stays as it was.
fn pitches<T: Element>() -> Outcome {
    const CLASSES: usize = 20;
    let canary = T::from_f64(7.0);
    let mut batch = Batch::<T>::new(2, [12, 9, CLASSES], 25);
    let op = LinearCrossEntropy::default().chunk_rows(5);
    let expected = run(&op, &batch, None)?;
    // Four rows and a gap of a row, three times; rows of 9 and a gap of 2.
    let of_hidden = Rows::new(12, 9).pitch(11).groups(4, 55).offset(3);
    let of_weight = Rows::new(CLASSES + 2, 9).pitch(10).offset(1);
    let spread = |values: &[T], starts: &[usize], len: usize| {
        let mut elements = vec![canary; len];
        for (row, start) in values.chunks(9).zip(starts) {
            elements[*start..start + 9].copy_from_slice(row);
        }
        elements
    };
    let starts: Vec<usize> = (0..12).map(|row| 3 + row / 4 * 55 + row % 4 * 11).collect();
    let of_classes: Vec<usize> = (0..CLASSES + 2).map(|row| 1 + row * 10).collect();
    let hidden = spread(&batch.hidden, &starts, 170);
    batch.weight.extend([T::from_f64(f64::NAN); 18]);
    let weight = spread(&batch.weight, &of_classes, 221);
    let of_op = LinearCrossEntropy::new(op.loss.vocab(CLASSES as u64)).chunk_rows(5);
    let labels: Vec<i32> = batch.labels.iter().map(|&label| label as i32).collect();
    let (x, w) = (
        Input::rows(&hidden, of_hidden),
        Input::rows(&weight, of_weight),
    );
    for accumulate in [false, true] {
        let mut d_hidden = vec![canary; hidden.len()];
        let mut d_weight = vec![7.0f32; weight.len()];
        if accumulate {
            // The classes start from 0.
            for start in &of_classes[..CLASSES] {
                d_weight[*start..start + 9].fill(0.0);
            }
        }
        let call = head::forward_with_gradient(&of_op, x, w, &labels);
        let call = call.d_hidden(Output::rows(&mut d_hidden, of_hidden));
        let to = Output::rows(&mut d_weight, of_weight);
        let summary = match accumulate {
            false => call.d_weight(to).run()?,
            true => call.accumulate_d_weight(to).run()?,
        };
        assert_eq!(summary, expected.summary);
        let spread = spread(&expected.d_hidden, &starts, 170);
        assert_eq!(bits(&d_hidden), bits(&spread));
        for (at, d) in d_weight.iter().enumerate() {
            let row = of_classes
                .iter()
                .position(|start| (*start..start + 9).contains(&at));
            let expected = match row {
                Some(row) if row < CLASSES => expected.d_weight[row * 9 + at - of_classes[row]],
                Some(_) if !accumulate => 0.0,
                _ => 7.0,
            };
            // 0 + −0 is 0.
            assert!(*d == expected, "d_weight[{at}]: {d} for {expected}");
        }
    }
    Ok(())
}

/// NaN and infinities in rows that need no logits reach nothing; a bad label and a NaN in a kept row reach their row, and the
/// gradient of the weights.
fn special_values<T: Element>() -> Outcome {
    let nan = T::from_f64(f64::NAN);
    let mut batch = Batch::<T>::new(3, [8, 5, 30], 0);
    batch.labels[2] = -100;
    batch.weights = Some(vec![1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
    let kept = [0, 1, 4, 6, 7];
    let op = LinearCrossEntropy::default().chunk_rows(2);
    let clean = run(&op, &batch, Some(&kept))?;
    let mut poisoned = batch.clone();
    for (row, value) in [(2, f64::NAN), (3, f64::INFINITY), (5, f64::NEG_INFINITY)] {
        poisoned.hidden[row * 5..][..5].fill(T::from_f64(value));
    }
    // A label that is no class, in a row that is not listed.
    poisoned.labels[5] = 99;
    same("masked rows", &run(&op, &poisoned, Some(&kept))?, &clean)?;
    for row in [2, 3, 5] {
        assert!(
            clean.d_hidden[row * 5..][..5]
                .iter()
                .all(|d| d.to_f64().to_bits() == 0)
        );
    }

    let mut bad = batch.clone();
    bad.labels[4] = 30;
    bad.hidden[6 * 5 + 1] = nan;
    let got = run(&op, &bad, None)?;
    assert_eq!((got.summary.bad_row, got.summary.nan_row), (4, 6));
    for row in 0..8 {
        let is_nan = [4, 6].contains(&row);
        assert_eq!(
            f32::from_bits(got.rows[0][row]).is_nan(),
            is_nan,
            "row {row}"
        );
        let d_hidden = &got.d_hidden[row * 5..][..5];
        assert!(
            d_hidden.iter().all(|d| d.to_f64().is_nan() == is_nan),
            "row {row}"
        );
    }
    assert!(got.d_weight.iter().all(|d| d.is_nan()));
    Ok(())
}

/// Without rows, and without kept rows, the gradient of the weights is 0, or what was there, and the mean that of no rows.
fn no_rows<T: Element + ParamOf<T>>() -> Outcome {
    let none: [T; 0] = [];
    let weight: Vec<T> = Random(1).normal(12, 1.0);
    let hidden: Vec<T> = Random(2).normal(6, 1.0);
    for (hidden, labels) in [(&none[..], &[][..]), (&hidden, &[-100i64, -100])] {
        for empty_is_nan in [false, true] {
            let loss = CrossEntropy::default().empty_is_nan(empty_is_nan);
            let op = LinearCrossEntropy::new(loss);
            let (mut set, mut added) = (line::<T>(12), line::<f32>(12));
            let mut d_hidden = line::<T>(hidden.len());
            let call = head::forward_with_gradient(&op, hidden, &weight, labels);
            let summary = call.d_weight(&mut set).d_hidden(&mut d_hidden).run()?;
            assert_eq!(summary.mean.is_nan(), empty_is_nan);
            assert!(
                set.iter()
                    .chain(&d_hidden)
                    .all(|d| d.to_f64().to_bits() == 0)
            );
            let call = head::forward_with_gradient(&op, hidden, &weight, labels);
            call.accumulate_d_weight(&mut added).run()?;
            assert!(added.iter().all(|&d| d == 7.0));
            let cost = head::forward(&op, hidden, &weight, labels).cost()?;
            assert_eq!((cost.chunks, cost.flops), (0, 0));
        }
    }
    // Without columns all logits are 0.
    let op = LinearCrossEntropy::default();
    let weight = Input::rows(&none, Rows::new(8, 0));
    let mut loss = [0.0];
    head::forward(&op, &none, weight, &[3i64])
        .loss(&mut loss)
        .run()?;
    assert!((loss[0] - 8f32.ln()).abs() < 1e-6);
    Ok(())
}

/// PyTorch's loss and gradients in f64.
fn golden() -> Outcome {
    for case in linear_golden::cases() {
        let convert = |values: &[f64]| -> Vec<f32> { values.iter().map(|&v| v as f32).collect() };
        let head = LinearCrossEntropy::new(case.op);
        let classes = case.weight.len() / case.cols;
        let batch = Batch {
            hidden: convert(&case.hidden),
            weight: convert(&case.weight),
            labels: case.labels.clone(),
            weights: case.weights.clone(),
            dloss: Some(case.dloss.clone()),
            cols: case.cols,
            classes,
        };
        let got = run(&head, &batch, None)?;
        let targets = targets(&case.op, &batch, got.summary.normalizer.into());
        let exact = head.evaluate(&batch.hidden, &batch.weight, case.cols, &targets);
        all_within(
            &case.name,
            &got.d_hidden,
            &case.d_hidden,
            &exact.d_hidden_bound,
        )?;
        all_within(
            &case.name,
            &got.d_weight,
            &case.d_weight,
            &exact.d_weight_bound,
        )?;
        for (row, theirs) in case.loss.iter().enumerate() {
            let bound = exact.rows[row].as_ref().map_or(0.0, |row| row.loss_bound);
            let loss = f32::from_bits(got.rows[0][row]);
            assert!(
                within(loss, *theirs, bound),
                "{}, row {row}: {loss}",
                case.name
            );
        }
        assert!((f64::from(got.summary.mean) - case.mean).abs() < 1e-5 * case.mean.abs().max(1.0));
    }
    Ok(())
}

/// Rows that Goldfish drops are not multiplied; with `dropped_loss` their loss is that of the same rows when they are kept.
fn goldfish() -> Outcome {
    let mut batch = Batch::<f32>::new(4, [60, 13, 40], 10);
    let strategy = Goldfish::new(Strategy::Hash64 {
        k: 3,
        h: 4,
        seed: 1,
    })?;
    let ids = batch.labels.clone();
    let keep = strategy.keep(&Tokens::row(&ids))?;
    let is_dropped = |row: usize| !keep[row] && batch.labels[row] != -100;
    let dropped = (0..60).filter(|&row| is_dropped(row)).count() as u64;
    assert!(dropped > 5);
    let op = LinearCrossEntropy::default().chunk_rows(7);
    let (mut d_hidden, mut d_weight) = (line::<f32>(60 * 13), line::<f32>(40 * 13));
    let measured = LinearCrossEntropy::new(op.loss.dropped_loss(true)).chunk_rows(7);
    let mut lse = line::<f32>(60);
    // NaN in a dropped row is read for its loss alone.
    let at = (0..60).find(|&row| is_dropped(row)).unwrap();
    let whole = run(&op, &batch, None)?;
    let list = kept_rows(&op.loss, &ids)
        .goldfish(&strategy, Tokens::row(&ids))
        .run()?;
    let mut plain: Option<(Vec<f32>, Vec<f32>)> = None;
    for (op, list) in [(&op, None), (&op, Some(&list)), (&measured, None)] {
        let mut call = head::forward_with_gradient(op, &batch.hidden, &batch.weight, &ids)
            .goldfish(&strategy, Tokens::row(&ids))
            .lse(&mut lse)
            .d_hidden(&mut d_hidden)
            .d_weight(&mut d_weight);
        if let Some(list) = list {
            call = call.kept_rows(list);
        }
        let summary = call.run()?;
        assert_eq!(
            summary.kept,
            60 - dropped - ids.iter().filter(|&&id| id == -100).count() as u64
        );
        for row in (0..60).filter(|&row| is_dropped(row)) {
            assert!(d_hidden[row * 13..][..13].iter().all(|d| d.to_bits() == 0));
            if op.loss.dropped_loss {
                assert_eq!(lse[row].to_bits(), whole.rows[2][row]);
            }
        }
        let got = (d_hidden.clone(), d_weight.clone());
        assert_eq!(*plain.get_or_insert(got.clone()), got);
    }
    batch.hidden[at * 13] = f32::NAN;
    let call = head::forward_with_gradient(&measured, &batch.hidden, &batch.weight, &ids);
    let call = call
        .goldfish(&strategy, Tokens::row(&ids))
        .d_weight(&mut d_weight);
    assert!(call.run()?.dropped_loss.is_nan());
    assert_eq!(plain.unwrap().1, d_weight);
    Ok(())
}

/// Lists of kept rows: what they have, and that a loss with one has the rows and the counts of the mask itself.
fn lists() -> Outcome {
    let op = CrossEntropy::default();
    let labels = [4i64, -100, 9, -3, 2];
    assert_eq!(kept_rows(&op, &labels).run()?, [0, 2, 3, 4]);
    let weights = [0.0, 1.0, f32::NAN, 1.0, -1.0];
    assert_eq!(kept_rows(&op, &labels).weights(&weights).run()?, [2, 3, 4]);
    let strategy = Goldfish::new(Strategy::Static { k: 2, start: 0 })?;
    let tokens = || Tokens::row(&labels);
    let list = kept_rows(&op, &labels)
        .goldfish(&strategy, tokens())
        .run()?;
    // Rows 0, 2 and 4 are dropped; the label of row 3 is no class.
    assert_eq!(list, [3]);
    let measured = op.dropped_loss(true);
    let list = kept_rows(&measured, &labels)
        .goldfish(&strategy, tokens())
        .run()?;
    assert_eq!(list, [0, 2, 3, 4]);
    // 9 is no class, which is known with `vocab`: then it is bad and not dropped.
    let list = kept_rows(&op.vocab(5), &labels)
        .goldfish(&strategy, tokens())
        .run()?;
    assert_eq!(list, [2, 3]);
    assert!(kept_rows(&op, &[] as &[i64]).run()?.is_empty());
    let few = kept_rows(&op, &labels).weights(&[1.0; 4]).run();
    assert!(matches!(
        few,
        Err(Error::Length {
            what: "weights",
            ..
        })
    ));
    Ok(())
}

/// Chunks are equal, multiples of 256 or 128 rows where so many fit, and within the budget; progress ends at the operations of
/// the cost.
fn costs() -> Outcome {
    const H: usize = 16;
    const V: usize = 2000;
    let batch = Batch::<f32>::new(8, [1500, H, V], 0);
    let call = |op: &LinearCrossEntropy| {
        head::forward(op, &batch.hidden, &batch.weight, &batch.labels).cost()
    };
    let whole = call(&LinearCrossEntropy::default())?;
    assert_eq!((whole.chunks, whole.chunk_rows), (1, 1500));
    let least = call(&LinearCrossEntropy::default().chunk_rows(1))?.bytes;
    let row = (whole.bytes - least) / 1499;
    assert!(
        (4 * V as u64..5 * V as u64).contains(&row),
        "{row} bytes for a row"
    );
    for (rows, chunks, chunk_rows) in [
        (1499, 2, 768),
        (800, 2, 768),
        (767, 3, 512),
        (300, 6, 256),
        (255, 12, 128),
        (127, 12, 125),
        (1, 1500, 1),
    ] {
        let op = LinearCrossEntropy::default().max_bytes(least + (rows - 1) * row);
        let cost = call(&op)?;
        assert_eq!(
            (cost.chunks, cost.chunk_rows),
            (chunks, chunk_rows),
            "{rows} rows"
        );
        assert!(cost.bytes <= op.max_bytes);
    }
    let op = LinearCrossEntropy::default().max_bytes(least - 1);
    let expected = Error::Budget {
        max_bytes: least - 1,
        needed: least,
    };
    assert_eq!(call(&op), Err(expected.clone()));
    let mut loss = line::<f32>(1500);
    let call = head::forward(&op, &batch.hidden, &batch.weight, &batch.labels);
    assert_eq!(call.loss(&mut loss).run().map(|_| ()), Err(expected));
    assert!(loss.iter().all(|&loss| loss == 7.0));

    let op = LinearCrossEntropy::default().chunk_rows(700);
    let list: Vec<i32> = (0..1000).collect();
    let (mut d_hidden, mut d_weight) = (line::<f32>(1500 * H), line::<f32>(V * H));
    let mut expected = 1;
    for gradients in 0..4 {
        let seen = Mutex::new(Vec::new());
        let progress = |progress: head::Progress| seen.lock().unwrap().push(progress);
        macro_rules! call {
            () => {{
                let labels = &batch.labels;
                let call = head::forward_with_gradient(&op, &batch.hidden, &batch.weight, labels);
                let mut call = call.kept_rows(&list);
                if gradients & 1 != 0 {
                    call = call.d_hidden(&mut d_hidden);
                }
                if gradients & 2 != 0 {
                    call = call.d_weight(&mut d_weight);
                }
                call
            }};
        }
        expected = 2 * (1000 * H * V) as u64 * [1, 2, 2, 3][gradients];
        assert_eq!(call!().cost()?.flops, expected);
        call!().progress(&progress).run()?;
        let seen = seen.into_inner().unwrap();
        assert!(seen.len() >= 2 && seen.iter().all(|seen| seen.total == expected));
        assert_eq!(seen.iter().map(|seen| seen.done).max(), Some(expected));
    }
    assert_eq!(expected, 6 * (1000 * H * V) as u64);
    Ok(())
}

/// Wrong shapes, lists and budgets are typed errors, and nothing is written.
fn errors() -> Outcome {
    const N: usize = 3;
    const H: usize = 4;
    const V: usize = 5;
    let op = LinearCrossEntropy::default();
    let (hidden, weight) = ([0.5f32; N * H], [0.25f32; V * H]);
    let labels = [0i64, 1, 2];
    /// Runs a call with one change.
    macro_rules! call {
        ($op:expr, $hidden:expr, $weight:expr $(, $($change:tt)+)?) => {{
            let op = $op;
            let (mut loss, mut d_hidden, mut d_weight) = ([7.0; N], [7.0; N * H], [7.0f32; V * H]);
            let call = head::forward_with_gradient(&op, $hidden, $weight, &labels)
                .loss(&mut loss)
                .d_hidden(&mut d_hidden)
                .d_weight(&mut d_weight);
            let result = call$(.$($change)+)?.run().map(|_| ());
            let is_untouched = loss == [7.0; N] && d_hidden == [7.0; N * H] && d_weight == [7.0; V * H];
            assert!(result.is_ok() || is_untouched);
            result
        }};
    }
    let length = |what, expected, got| {
        Err(Error::Length {
            what,
            expected,
            got,
        })
    };
    assert_eq!(call!(op, &hidden, &weight), Ok(()));
    assert_eq!(call!(op, &hidden[..11], &weight), length("hidden", 9, 11));
    assert_eq!(call!(op, &hidden, &weight[..19]), length("weight", 16, 19));
    let few = call!(op, Input::rows(&hidden, Rows::new(2, H)), &weight);
    assert_eq!(few, length("labels", 2, 3));
    let narrow = call!(op, &hidden, Input::rows(&weight, Rows::new(V, 3)));
    let expected = Error::Shape {
        what: "weight",
        expected: [5, 4],
        got: [5, 3],
    };
    assert_eq!(narrow, Err(expected));
    let overlapping = call!(op, &hidden, Input::rows(&weight, Rows::new(V, H).pitch(3)));
    assert!(matches!(overlapping, Err(Error::Pitch { .. })));
    let groups = Rows::new(4, H).groups(2, 9);
    let mut d_weight = [7.0f32; 17];
    let call =
        head::forward_with_gradient(&op, &hidden, Input::rows(&weight[..17], groups), &labels);
    let refused = call.d_weight(&mut d_weight).run();
    assert!(matches!(
        refused,
        Err(Error::Groups { what: "weight" } | Error::Length { .. })
    ));
    let refused = call!(op, &hidden, Input::rows(&weight, groups));
    assert!(refused.is_err());
    let mut short = [7.0; N * H - 1];
    let call = head::forward_with_gradient(&op, &hidden, &weight, &labels);
    let refused = call.d_hidden(&mut short).run().map(|_| ());
    assert_eq!(
        (refused, short),
        (length("d_hidden", 12, 11), [7.0; N * H - 1])
    );
    let mut short = [7.0f32; V * H - 1];
    let call = head::forward_with_gradient(&op, &hidden, &weight, &labels);
    let refused = call.accumulate_d_weight(&mut short).run().map(|_| ());
    assert_eq!(
        (refused, short),
        (length("d_weight", 20, 19), [7.0; V * H - 1])
    );
    assert_eq!(
        call!(op, &hidden, &weight, weights(&[1.0; 2])),
        length("weights", 3, 2)
    );
    assert_eq!(
        call!(op, &hidden, &weight, dloss(&[1.0; 2])),
        length("dloss", 3, 2)
    );
    let list = |list: &[i32]| call!(op, &hidden, &weight, kept_rows(list));
    assert_eq!(list(&[-1, 2, -1, 0, -1, -1]), Ok(()));
    for (bad, at, row) in [
        (&[0, 3][..], 1, 3),
        (&[1, 2, 1], 2, 1),
        (&[-2], 0, -2),
        (&[0, 1, 2, i32::MAX], 3, i32::MAX.into()),
    ] {
        let rows = N as u64;
        assert_eq!(list(bad), Err(Error::KeptRow { at, row, rows }));
    }
    for bad in [
        op.chunk_rows(0),
        LinearCrossEntropy::new(CrossEntropy::default().z_loss(-1.0)),
    ] {
        let refused = call!(bad, &hidden, &weight);
        assert!(matches!(refused, Err(Error::OutOfRange { .. })));
    }
    let more = LinearCrossEntropy::new(CrossEntropy::default().vocab(6));
    assert_eq!(
        call!(more, &hidden, &weight),
        length("a row of logits", 6, 5)
    );
    let tight = op.max_bytes(1000);
    assert!(matches!(
        call!(tight, &hidden, &weight),
        Err(Error::Budget {
            max_bytes: 1000,
            ..
        })
    ));
    let many = op.max_bytes(op.max_bytes).chunk_rows(u64::MAX);
    assert_eq!(call!(many, &hidden, &weight), Ok(()));
    let saved = [0; 59];
    let refused = head::backward(&op, &hidden, &weight, &labels, &saved, 1.0).run();
    assert_eq!(refused, length("saved", 60, 59));
    let shard = Shard::new(2, 5);
    let mut saved = [7; 60];
    let refused = head::partial(&op, &hidden, &weight, &labels, shard, &mut saved).run();
    assert!(matches!(refused, Err(Error::Classes { .. })) && saved == [7; 60]);

    Ok(())
}
