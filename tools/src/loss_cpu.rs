//! Runs cross-entropy on the CPU backend, with canaries between the rows.

use xact::cpu::cross_entropy::{self, backward, backward_in_place, finish, forward, partial};
use xact::cpu::{Input, Output};
use xact::loss::cross_entropy::Label;
use xact::loss::goldfish::Tokens;
use xact::{CrossEntropy, CrossEntropySummary, Element, Result, RowStats, Rows, Shard};

use super::loss_check::{Batch, Results};

/// The layout and the options of a call.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// The number of elements between the rows of the logits and of the gradients.
    pub gaps: [usize; 2],
    /// Whether the backward overwrites the logits.
    pub in_place: bool,
    /// Whether labels are i32 instead of i64.
    pub narrow: bool,
    /// Whether the optional outputs are requested.
    pub all_outputs: bool,
    /// The rows that Goldfish drops: a mask and the ids.
    pub goldfish: Option<(&'a xact::Goldfish, Tokens<'a, i64>)>,
    /// The number of rows of a group; the gaps are then between the groups.
    pub groups: Option<usize>,
}

impl Default for How<'_> {
    fn default() -> Self {
        How {
            gaps: [0; 2],
            in_place: false,
            narrow: false,
            all_outputs: true,
            goldfish: None,
            groups: None,
        }
    }
}

/// Rows, or groups of rows, with `gap` elements between them.
struct Spread<T> {
    elements: Vec<T>,
    cols: usize,
    /// The number of rows of a group, if there are groups.
    pitch: usize,
    groups: Option<usize>,
}

fn canary<T: Element>() -> T {
    T::from_f64(7.0)
}

impl<T: Element> Spread<T> {
    fn new(values: &[T], cols: usize, gap: usize, groups: Option<usize>) -> Spread<T> {
        let len = cols * groups.unwrap_or(1);
        let pitch = len + gap;
        let rows = values.chunks_exact(len.max(1));
        let mut elements: Vec<T> = rows
            .flat_map(|row| [row, &vec![canary(); gap]].concat())
            .collect();
        if gap % 2 == 1 {
            // The gap after the last row may be missing.
            elements.truncate(elements.len().saturating_sub(gap));
        }
        Spread {
            elements,
            cols,
            pitch,
            groups,
        }
    }

    fn rows(&self, rows: usize) -> Rows {
        match self.groups {
            Some(of_group) => Rows::new(rows, self.cols).groups(of_group, self.pitch),
            None => Rows::new(rows, self.cols).pitch(self.pitch),
        }
    }

    fn input(&self, rows: usize) -> Input<'_, T> {
        Input::rows(&self.elements, self.rows(rows))
    }

    fn output(&mut self, rows: usize) -> Output<'_, T> {
        let rows = self.rows(rows);
        Output::rows(&mut self.elements, rows)
    }

    fn collect(&self) -> Vec<T> {
        let rows = self.elements.chunks(self.pitch.max(1));
        let rows = rows.flat_map(|row| {
            let (row, gap) = row.split_at(self.cols * self.groups.unwrap_or(1));
            assert!(
                gap.iter().all(|v| v.to_f64().to_bits() == 7f64.to_bits()),
                "a write between rows"
            );
            row.to_vec()
        });
        rows.collect()
    }
}

/// The outputs of a forward.
struct Buffers {
    loss: Vec<f32>,
    z_loss: Vec<f32>,
    lse: Vec<f32>,
    argmax: Vec<i32>,
    saved: Vec<u8>,
}

impl Buffers {
    fn new(rows: usize) -> Buffers {
        let line = || vec![f32::NAN; rows];
        Buffers {
            loss: line(),
            z_loss: line(),
            lse: line(),
            argmax: vec![-7; rows],
            saved: vec![0; size_of::<RowStats>() * rows],
        }
    }

    fn results<T>(self, summary: CrossEntropySummary, dlogits: Vec<T>) -> Results<T> {
        let Buffers {
            loss,
            z_loss,
            lse,
            argmax,
            saved,
        } = self;
        Results {
            loss,
            z_loss,
            lse,
            argmax,
            stats: stats(&saved),
            summary,
            dlogits,
        }
    }
}

/// Converts the saved bytes to the statistics that the kernels use.
fn stats(saved: &[u8]) -> Vec<RowStats> {
    let word =
        |bytes: &[u8], i: usize| -> u32 { bytemuck::pod_read_unaligned(&bytes[4 * i..][..4]) };
    let float = |bytes: &[u8], i| f32::from_bits(word(bytes, i));
    let rows = saved.chunks_exact(size_of::<RowStats>());
    let row = |bytes| {
        let mut stats = RowStats::default();
        (stats.max, stats.rest) = (float(bytes, 0), float(bytes, 1));
        (stats.target, stats.sum) = (float(bytes, 2), float(bytes, 3));
        stats.argmax = word(bytes, 4);
        stats
    };
    rows.map(row).collect()
}

/// The inverse: converts statistics to saved bytes.
pub fn saved(stats: &[RowStats]) -> Vec<u8> {
    let words = stats.iter().flat_map(|s| {
        let floats = [s.max, s.rest, s.target, s.sum].map(f32::to_bits);
        floats.into_iter().chain([s.argmax])
    });
    words.flat_map(u32::to_ne_bytes).collect()
}

/// Adds the weights and the Goldfish decision to a call.
macro_rules! with_rows {
    ($call:expr, $batch:expr, $goldfish:expr) => {{
        let mut call = $call;
        if let Some(weights) = &$batch.weights {
            call = call.weights(weights);
        }
        if let Some((goldfish, tokens)) = $goldfish {
            call = call.goldfish(goldfish, tokens);
        }
        call
    }};
}

/// Adds the outputs to a call.
macro_rules! with_outputs {
    ($call:expr, $batch:expr, $buffers:expr, $all:expr) => {{
        let mut call = $call.saved(&mut $buffers.saved);
        if $all {
            call = call
                .loss(&mut $buffers.loss)
                .z_loss(&mut $buffers.z_loss)
                .lse(&mut $buffers.lse)
                .argmax(&mut $buffers.argmax);
        }
        if let Some(normalizer) = $batch.normalizer {
            call = call.normalizer(normalizer);
        }
        call
    }};
}

/// Adds the upstream gradients to a call.
macro_rules! with_dloss {
    ($call:expr, $batch:expr) => {{
        let mut call = $call;
        if let Some((values, stride)) = &$batch.dloss {
            call = call.dloss_strided(values, usize::try_from(*stride).expect("forwards"));
        }
        call
    }};
}

/// Makes a call with labels of i64 or i32.
fn call<T: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    how: How<'_>,
    at_once: bool,
) -> Result<Results<T>> {
    let narrow = |ids: &[i64]| -> Vec<i32> { ids.iter().map(|&id| id as i32).collect() };
    if !how.narrow {
        return call_of(op, batch, &batch.labels, how.goldfish, how, at_once);
    }
    let ids = how.goldfish.map(|(_, tokens)| narrow(tokens.hash_ids));
    let halo = how.goldfish.map(|(_, tokens)| narrow(tokens.halo));
    let goldfish = how.goldfish.map(|(strategy, tokens)| {
        let ids = ids.as_deref().unwrap_or_default();
        let mut narrow = Tokens::row(ids).interleaved(tokens.interleaved);
        narrow.layout = tokens.layout;
        let halo = halo.as_deref().unwrap_or_default();
        (strategy, narrow.halo(halo).exempt(tokens.exempt))
    });
    call_of(op, batch, &narrow(&batch.labels), goldfish, how, at_once)
}

fn call_of<T: Element, L: Label>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    labels: &[L],
    goldfish: Option<(&xact::Goldfish, Tokens<'_, L>)>,
    how: How<'_>,
    at_once: bool,
) -> Result<Results<T>> {
    let n = batch.labels.len();
    let mut logits = Spread::new(&batch.logits, batch.cols, how.gaps[0], how.groups);
    let mut buffers = Buffers::new(n);
    if at_once {
        let call = cross_entropy::forward_with_gradient(op, logits.output(n), labels);
        let call = with_dloss!(with_rows!(call, batch, goldfish), batch);
        let summary = with_outputs!(call, batch, buffers, how.all_outputs).run()?;
        return Ok(buffers.results(summary, logits.collect()));
    }
    let call = with_rows!(forward(op, logits.input(n), labels), batch, goldfish);
    let summary = with_outputs!(call, batch, buffers, how.all_outputs).run()?;
    let divisor = summary.normalizer;
    if how.in_place {
        let call = backward_in_place(op, logits.output(n), labels, &buffers.saved, divisor);
        let call = with_rows!(call, batch, goldfish);
        let call = match batch.shard {
            Some(shard) => call.shard(shard),
            None => call,
        };
        with_dloss!(call, batch).run()?;
        return Ok(buffers.results(summary, logits.collect()));
    }
    let blank = vec![T::from_f64(f64::NAN); batch.logits.len()];
    let mut dlogits = Spread::new(&blank, batch.cols, how.gaps[1], how.groups);
    let (input, output) = (logits.input(n), dlogits.output(n));
    let call = backward(op, input, labels, &buffers.saved, divisor, output);
    with_dloss!(with_rows!(call, batch, goldfish), batch).run()?;
    Ok(buffers.results(summary, dlogits.collect()))
}

/// Runs the forward, then the backward.
pub fn forward_backward<T: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    how: How<'_>,
) -> Result<Results<T>> {
    call(op, batch, how, false)
}

/// Runs the forward with the gradient in place.
pub fn with_gradient<T: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    how: How<'_>,
) -> Result<Results<T>> {
    call(op, batch, how, true)
}

/// The same with the columns spread over ranks, of `widths` columns each. Returns the final results of each rank, with the
/// gradients of its own columns.
pub fn sharded<T: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    widths: &[usize],
) -> Result<Vec<Results<T>>> {
    let n = batch.labels.len();
    let none: Option<(&xact::Goldfish, Tokens<'_, i64>)> = None;
    let shard = |first| Shard::new(first as u64, batch.cols as u64);
    // The columns of a rank are a matrix with a pitch.
    let firsts = widths.iter().scan(0, |end, &width| {
        *end += width;
        Some((*end - width, width))
    });
    let logits = |(first, cols): (usize, usize)| {
        let elements = &batch.logits[first..(n - 1) * batch.cols + first + cols];
        Input::rows(elements, Rows::new(n, cols).pitch(batch.cols))
    };
    let mut gathered = Vec::new();
    for columns in firsts.clone() {
        let mut saved = vec![0; op.saved_bytes(n as u64) as usize];
        let call = partial(
            op,
            logits(columns),
            &batch.labels,
            shard(columns.0),
            &mut saved,
        );
        with_rows!(call, batch, none).with_argmax().run()?;
        gathered.extend(saved);
    }
    let each = firsts.map(|columns| {
        let mut buffers = Buffers::new(n);
        let call = finish(op, &batch.labels, shard(columns.0), &gathered);
        let call = with_rows!(call, batch, none);
        let summary = with_outputs!(call, batch, buffers, true).run()?;
        let mut dlogits = vec![T::from_f64(f64::NAN); n * columns.1];
        let divisor = summary.normalizer;
        let call = backward(
            op,
            logits(columns),
            &batch.labels,
            &gathered,
            divisor,
            &mut dlogits,
        );
        let call = with_rows!(call, batch, none).shard(shard(columns.0));
        with_dloss!(call, batch).run()?;
        Ok(buffers.results(summary, dlogits))
    });
    each.collect()
}
