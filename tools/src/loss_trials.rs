//! The trials of cross-entropy that every backend must pass, with the same batches.

use libtest_mimic::Failed;
use xact::{CrossEntropy, Dtype, Element, Error, Normalizer};

use super::inputs::Random;
use super::loss_cases::{batch, check_golden, everything, options, special_rows};
use super::loss_check::{Batch, Results, check, expected, same, within};
use super::same::bits;

/// The result of a trial.
pub type Outcome = Result<(), Failed>;

/// Variations of a call with the same batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variant {
    /// The number of elements from a 16-byte boundary to the start of the logits, if the backend has a choice.
    pub offset: usize,
    /// The number of elements between rows of logits.
    pub gap: usize,
    /// Whether labels are i32 instead of i64.
    pub narrow: bool,
}

/// A backend in the trials.
pub trait Backend: 'static {
    /// The strides of upstream gradients that the backend takes.
    const STRIDES: &'static [i64];

    /// Whether to run all variants.
    fn full(&self) -> bool;

    /// Whether long rows are slow, and are tried less often.
    fn is_slow(&self) -> bool;

    /// The gradient by a forward and a backward, and by one call.
    fn ways<T: Element>(
        &self,
        op: &CrossEntropy,
        batch: &Batch<T>,
        variant: Variant,
    ) -> [xact::Result<Results<T>>; 2];

    /// The columns spread over ranks, of `widths` columns each. Returns the final results of each rank.
    fn sharded<T: Element>(
        &self,
        op: &CrossEntropy,
        batch: &Batch<T>,
        widths: &[usize],
        variant: Variant,
    ) -> xact::Result<Vec<Results<T>>>;

    /// Runs `f` in every mode of approximate instructions, if the backend has modes.
    fn in_every_mode(&self, act: &dyn Fn() -> Outcome) -> Outcome;
}

/// Calls `add` with the name and the function of every trial.
pub fn for_each<B: Backend, T: Element>(mut add: impl FnMut(String, fn(&B) -> Outcome)) {
    macro_rules! trials {
        ($($name:ident),+ $(,)?) => {$(
            add(format!("{}::{}", stringify!($name), T::DTYPE), $name::<B, T>);
        )+};
    }
    trials![
        vocabularies,
        golden,
        large_common_offsets,
        special_values,
        the_lowest_logits,
        columns_that_are_no_classes,
        rows_that_do_not_count,
        bad_labels,
        weights_of_any_value,
        upstream_gradients,
        normalizers,
        no_rows_and_no_columns,
        ranks,
    ];
}

fn fail<R>(message: String) -> Result<R, Failed> {
    Err(message.into())
}

/// Runs both ways to the gradient, which must give the same bits.
fn both<T: Element>(
    backend: &impl Backend,
    op: &CrossEntropy,
    batch: &Batch<T>,
    variant: Variant,
) -> Result<Results<T>, Failed> {
    let [two, one] = backend.ways(op, batch, variant);
    let (two, one) = (two?, one?);
    same("in one call", &one, &two)?;
    Ok(two)
}

/// Runs both ways, and compares them with the reference.
fn checked<T: Element>(
    backend: &impl Backend,
    op: &CrossEntropy,
    batch: &Batch<T>,
    variant: Variant,
) -> Result<Results<T>, Failed> {
    let got = both(backend, op, batch, variant)?;
    let reference = expected(op, batch, &[]);
    within((op, variant), check(op, batch, &reference, &got))?;
    Ok(got)
}

/// The same in every mode of approximate instructions.
fn checked_in_every_mode<T: Element>(
    backend: &impl Backend,
    op: &CrossEntropy,
    batch: &Batch<T>,
) -> Outcome {
    let reference = expected(op, batch, &[]);
    backend.in_every_mode(&|| {
        let got = both(backend, op, batch, Variant::default())?;
        Ok(within(op, check(op, batch, &reference, &got))?)
    })
}

/// Loss, lse and gradients are within their bounds.
pub fn accuracy<T: Element>(backend: &impl Backend, op: &CrossEntropy) -> Outcome {
    let mut shapes = vec![(8, 3), (9, 100), (8, 2500)];
    if backend.full() {
        shapes.extend([(1, 1), (8, 2), (1030, 17), (8, 50_257), (3, 131_072)]);
    }
    for (rows, cols) in shapes {
        let scales = [1.0, 5.0, 0.1, 20.0];
        let few = backend.is_slow() && cols > 10_000;
        for &scale in &scales[..if few { 2 } else { 4 }] {
            let mut batch = batch::<T>(cols as u64, rows, cols, cols, scale);
            batch.weights = Some((0..rows).map(|r| 1.0 + r as f32 / 8.0).collect());
            checked_in_every_mode(backend, op, &batch)?;
        }
    }
    Ok(())
}

/// Rows of realistic and of unfavourable lengths, with gaps.
fn vocabularies<B: Backend, T: Element>(backend: &B) -> Outcome {
    let op = CrossEntropy::default().label_smoothing(0.05);
    let long: &[usize] = if backend.full() || T::DTYPE == Dtype::Bf16 {
        &[50_257, 131_071, 131_073]
    } else {
        &[50_257]
    };
    let short = [1, 7, 15, 16, 17, 255, 256, 257, 511, 512, 513];
    for &cols in short.iter().chain(long) {
        let variant = Variant {
            offset: 1,
            gap: 3,
            ..Variant::default()
        };
        checked(backend, &op, &batch::<T>(5, 2, cols, cols, 2.0), variant)?;
    }
    Ok(())
}

/// Equals the results of PyTorch.
fn golden<B: Backend, T: Element>(backend: &B) -> Outcome {
    check_golden::<T>(|op, batch| {
        both(backend, op, batch, Variant::default()).map_err(|e| format!("{e:?}"))
    })?;
    Ok(())
}

/// A constant that is added to all logits of a row does not make the loss and the gradient less accurate.
fn large_common_offsets<B: Backend, T: Element>(backend: &B) -> Outcome {
    for offset in [1e4, -1e4, 3e4, -6e4] {
        let mut batch = batch::<T>(3, 8, 300, 300, 3.0);
        for z in &mut batch.logits {
            *z = T::from_f64(z.to_f64() + offset);
        }
        for (_, op) in options().into_iter().filter(|(_, op)| op.softcap.is_none()) {
            checked_in_every_mode(backend, &op, &batch)?;
        }
    }
    Ok(())
}

/// −inf, +inf and NaN among the logits, rows of only −inf, and one-hot rows.
fn special_values<B: Backend, T: Element>(backend: &B) -> Outcome {
    let (batch, caps) = special_rows::<T>();
    for op in options().into_iter().map(|(_, op)| op).chain(caps) {
        checked_in_every_mode(backend, &op, &batch)?;
        // The position of the rows does not matter here.
        let variant = Variant {
            offset: 1,
            ..Variant::default()
        };
        checked(backend, &op, &batch, variant)?;
    }
    Ok(())
}

/// Rows of the lowest finite number, as code that masks logits writes it: all classes are equally likely. (With label
/// smoothing the sum of the logits would overflow f32.)
fn the_lowest_logits<B: Backend, T: Element>(backend: &B) -> Outcome {
    let lowest = if T::DTYPE == Dtype::F16 {
        -65504.0
    } else {
        // The lowest bf16.
        -f64::from(f32::from_bits(0x7f7f_0000))
    };
    let mut batch = batch::<T>(1, 3, 2100, 2100, 1.0);
    batch.logits.fill(T::from_f64(lowest));
    // The last row has one class that is not masked, its target.
    batch.logits[2 * 2100 + 7] = T::from_f64(1.0);
    batch.labels[2] = 7;
    checked_in_every_mode(backend, &CrossEntropy::default(), &batch)
}

/// Columns beyond the classes may contain anything. They do not affect the results, and their gradient is 0.
fn columns_that_are_no_classes<B: Backend, T: Element>(backend: &B) -> Outcome {
    let mut shapes = vec![(3, 8, 7), (2, 64, 50), (2, 5000, 4097), (2, 9000, 3)];
    if backend.full() {
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
                    let variant = Variant {
                        offset,
                        gap: offset,
                        narrow: false,
                    };
                    checked(backend, &op, &batch, variant)?;
                }
            }
        }
    }
    Ok(())
}

const NORMALIZERS: [Normalizer; 4] = [
    Normalizer::None,
    Normalizer::Kept,
    Normalizer::Labels,
    Normalizer::Weight,
];

/// All rows ignored, one valid, all of weight 0: gradients are exactly 0, and the mean is 0 or NaN as requested.
fn rows_that_do_not_count<B: Backend, T: Element>(backend: &B) -> Outcome {
    let (rows, cols) = (6, 70);
    let variant = Variant {
        narrow: true,
        ..Variant::default()
    };
    for ignore_index in [-100, -1, -2, 0, 5, i64::from(i32::MIN)] {
        for empty_is_nan in [false, true] {
            for normalizer in NORMALIZERS {
                let op = CrossEntropy::default()
                    .ignore_index(ignore_index)
                    .empty_is_nan(empty_is_nan)
                    .normalizer(normalizer);
                let mut batch = batch::<T>(2, rows, cols, cols, 2.0);
                // Values that are not read may be anything.
                batch.logits.fill(T::from_f64(f64::NAN));
                batch.labels.fill(ignore_index);
                checked(backend, &op, &batch, variant)?;
                batch.labels.fill(7);
                batch.weights = Some(vec![0.0, -0.0, 0.0, 0.0, 0.0, 0.0]);
                checked(backend, &op, &batch, variant)?;
                batch.labels[4] = 3;
                batch.weights = Some(vec![0.0, 0.0, 0.0, 0.0, 2.0, 0.0]);
                let valid = Random(1).normal(cols, 1.0);
                batch.logits[4 * cols..5 * cols].copy_from_slice(&valid);
                checked(backend, &op, &batch, variant)?;
            }
        }
    }
    Ok(())
}

/// A label that is no class makes its own row NaN and is reported. The other rows do not change.
fn bad_labels<B: Backend, T: Element>(backend: &B) -> Outcome {
    let (rows, cols) = (7, 40);
    let ends = [i32::MAX, i32::MIN].map(i64::from);
    let labels = [&[40, 41, -1, -2, -101], &ends[..]].concat();
    let wide = vec![i64::MAX, i64::MIN, 1 << 32, (1 << 32) + 3, -(1 << 32) + 3];
    for (labels, narrow) in [(&labels, true), (&labels, false), (&wide, false)] {
        for &label in labels {
            for op in [CrossEntropy::default(), everything()] {
                // A kept row less would change the divisor of the other gradients.
                let op = op.normalizer(Normalizer::None);
                let mut batch = batch::<T>(4, rows, cols, cols, 2.0);
                let variant = Variant {
                    narrow,
                    ..Variant::default()
                };
                let good = both(backend, &op, &batch, variant)?;
                for r in [5, 2] {
                    batch.labels[r] = label;
                }
                let got = checked(backend, &op, &batch, variant)?;
                assert_eq!(got.summary.bad_row, 2);
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

/// Weights may be any numbers: negative weights are used as they are, and a NaN makes its own row NaN.
fn weights_of_any_value<B: Backend, T: Element>(backend: &B) -> Outcome {
    let subnormal = f32::MIN_POSITIVE;
    let weights = [-2.5, f32::NAN, 1e-30, 1e30, 0.0, -0.0, 1.0, subnormal];
    for op in options().map(|(_, op)| op) {
        let op = op.normalizer(Normalizer::None);
        let mut batch = batch::<T>(6, weights.len(), 333, 333, 2.0);
        batch.weights = Some(weights.to_vec());
        let got = checked(backend, &op, &batch, Variant::default())?;
        if !got.loss[1].is_nan() || got.loss.iter().filter(|l| l.is_nan()).count() != 1 {
            return fail(format!("{:?}", got.loss));
        }
    }
    Ok(())
}

/// Upstream gradients of any value and stride.
fn upstream_gradients<B: Backend, T: Element>(backend: &B) -> Outcome {
    let rows = 6;
    let mut batch = batch::<T>(8, rows, 90, 90, 2.0);
    batch.labels[1] = -100;
    let op = everything();
    let unit = both(backend, &op, &batch, Variant::default())?;
    for value in [1.0, 0.0, -0.0, -2.5, f32::NAN] {
        batch.dloss = Some((vec![value], 0));
        let got = checked(backend, &op, &batch, Variant::default())?;
        if value == 1.0 {
            same("dloss = 1", &got, &unit)?;
        }
        if value == 0.0 && got.dlogits.iter().any(|d| d.to_f64() != 0.0) {
            return fail("dloss = 0 leaves gradients".into());
        }
    }
    for &stride in B::STRIDES {
        let apart = stride.unsigned_abs() as usize;
        let mut dloss = Random(stride as u64).normal::<f32>(apart * (rows - 1) + 1, 1.0);
        batch.dloss = Some((dloss.clone(), stride));
        checked(backend, &op, &batch, Variant::default())?;
        // A NaN affects only its own row, and not a masked one.
        for row in [0, 1] {
            let at = if stride < 0 { rows - 1 - row } else { row };
            dloss[at * apart] = f32::NAN;
        }
        batch.dloss = Some((dloss, stride));
        checked(backend, &op, &batch, Variant::default())?;
    }
    Ok(())
}

/// The divisors of the mean and the gradients.
fn normalizers<B: Backend, T: Element>(backend: &B) -> Outcome {
    for rows in [1, 5, 300] {
        let mut batch = batch::<T>(11, rows, 20, 20, 2.0);
        batch.weights = Some((0..rows).map(|r| ((r + 1) % 4) as f32 / 2.0).collect());
        batch.labels[rows / 2] = -100;
        // The caller's divisor has priority over the options.
        for given in [None, Some(1234.5)] {
            batch.normalizer = given;
            for normalizer in NORMALIZERS {
                let op = CrossEntropy::default().normalizer(normalizer);
                checked(backend, &op, &batch, Variant::default())?;
            }
        }
    }
    Ok(())
}

/// With no rows, the summary is empty. With no columns, the call is an error.
fn no_rows_and_no_columns<B: Backend, T: Element>(backend: &B) -> Outcome {
    for empty_is_nan in [false, true] {
        let op = CrossEntropy::default().vocab(5).empty_is_nan(empty_is_nan);
        let mut empty = Batch::<T>::new(vec![], 5, vec![]);
        checked(backend, &op, &empty, Variant::default())?;
        empty.cols = 0;
        checked(backend, &op, &empty, Variant::default())?;
    }
    let none = Batch::<T>::new(vec![], 0, vec![1, 2]);
    for result in backend.ways(&CrossEntropy::default(), &none, Variant::default()) {
        if !matches!(result, Err(Error::Classes { .. })) {
            return fail("rows of no columns are accepted".into());
        }
    }
    Ok(())
}

/// Columns spread over ranks: the same bits on every rank, losses within 4 ulp of those of one rank, all within the bounds,
/// and the counts of one rank.
fn ranks<B: Backend, T: Element>(backend: &B) -> Outcome {
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
        // In some rows the argmax is the label, also on ranks other than the first.
        for r in [5, 6, 7] {
            batch.logits[r * 1000 + batch.labels[r] as usize] = T::from_f64(40.0);
        }
        batch.logits[8 * 1000..9 * 1000 - 100].fill(T::from_f64(f64::NEG_INFINITY));
        batch.logits[2 * 1000..3 * 1000].fill(T::from_f64(f64::NEG_INFINITY));
        let whole = checked(backend, &op, &batch, Variant::default())?;
        let reference = expected(&op, &batch, &[]);
        for (i, widths) in cuts.into_iter().enumerate() {
            let variant = Variant {
                offset: i % 3,
                gap: i,
                narrow: i % 2 == 0,
            };
            let agreeing = || -> Result<Vec<Results<T>>, Failed> {
                let each = backend.sharded(&op, &batch, widths, variant)?;
                for (rank, results) in each.iter().enumerate() {
                    if results.statistics() != each[0].statistics() {
                        return fail(format!("{widths:?}: rank {rank} differs from rank 0"));
                    }
                }
                Ok(each)
            };
            let each = agreeing()?;
            let mut joined = each[0].clone();
            joined.dlogits.clear();
            for r in 0..9 {
                for (results, &width) in each.iter().zip(widths) {
                    let row = &results.dlogits[r * width..][..width];
                    joined.dlogits.extend_from_slice(row);
                }
            }
            within((widths, op), check(&op, &batch, &reference, &joined))?;
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
            let argmax = |x: &Results<T>| (x.argmax.clone(), x.summary.correct);
            if argmax(&joined) != argmax(&whole) {
                return fail(format!("{widths:?}: {:?}", joined.summary));
            }
            if backend.full() {
                backend.in_every_mode(&|| agreeing().map(|_| ()))?;
            }
        }
    }
    Ok(())
}

/// Rows whose target has a probability close to 1: the loss is within a relative error of 1e-6, for gaps between the logits
/// of up to `farthest` at which the exponent has the largest rounding error.
pub fn confident_rows(backend: &impl Backend, farthest: f32) -> Outcome {
    let op = CrossEntropy::default().normalizer(Normalizer::None);
    let gaps = if backend.full() { 10_000 } else { 1200 };
    for others in [1, 3, 1000] {
        let gaps = if others > 10 { gaps / 50 } else { gaps };
        let cols = others + 1;
        let mut random = Random(others as u64);
        let mut logits = vec![0.0f32; gaps * cols];
        for (i, row) in logits.chunks_mut(cols).enumerate() {
            let top = random.uniform() as f32 * 10.0;
            // The probability is ½ or more.
            let gap = (others as f32).ln() + 0.01 + farthest * i as f32 / gaps as f32;
            row.fill(top - gap);
            row[0] = top;
        }
        checked_in_every_mode(backend, &op, &Batch::new(logits, cols, vec![0; gaps]))?;
    }
    Ok(())
}
