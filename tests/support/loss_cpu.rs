//! Runs cross-entropy on the CPU backend, with canaries between the rows.

use xact::cpu::cross_entropy::{
    Backward, BackwardInPlace, Dloss, Finish, Forward, ForwardWithGradient, Goldfish, Groups,
    Matrix, MatrixMut, Outputs, PartialStats, Rows, backward, backward_in_place, finish, forward,
    forward_with_gradient, partial_stats,
};
use xact::loss::cross_entropy::{Label, Shard};
use xact::loss::goldfish::Tokens;
use xact::{CrossEntropy, CrossEntropySummary, Element, Result, RowStats};

use super::loss_check::{Batch, Results};

/// How a call is made.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    /// Elements between the rows of the logits, and of the gradients.
    pub gaps: [usize; 2],
    /// The backward writes over the logits.
    pub in_place: bool,
    /// Labels are i32, not i64.
    pub narrow: bool,
    /// Ask for the outputs that may be left out.
    pub all_outputs: bool,
    pub goldfish: Option<(&'a xact::Goldfish, Tokens<'a, i64>)>,
    /// Rows of a group; the gaps are then between the groups.
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
    /// Of the groups, if there are any.
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
            // What follows the last row may be missing.
            elements.truncate(elements.len().saturating_sub(gap));
        }
        Spread {
            elements,
            cols,
            pitch,
            groups,
        }
    }

    /// The pitch of the rows, and the groups.
    fn lie(&self) -> (usize, Option<Groups>) {
        let groups = self.groups.map(|rows| Groups {
            rows,
            pitch: self.pitch,
        });
        (groups.map_or(self.pitch, |_| self.cols), groups)
    }

    fn matrix(&self) -> Matrix<'_, T> {
        let (pitch, groups) = self.lie();
        Matrix {
            elements: &self.elements,
            cols: self.cols,
            pitch,
            groups,
        }
    }

    fn matrix_mut(&mut self) -> MatrixMut<'_, T> {
        let (pitch, groups) = self.lie();
        MatrixMut {
            elements: &mut self.elements,
            cols: self.cols,
            pitch,
            groups,
        }
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
    stats: Vec<RowStats>,
}

impl Buffers {
    fn new(rows: usize) -> Buffers {
        let line = || vec![f32::NAN; rows];
        Buffers {
            loss: line(),
            z_loss: line(),
            lse: line(),
            argmax: vec![-7; rows],
            stats: vec![RowStats::default(); rows],
        }
    }

    fn outputs(&mut self, all: bool) -> Outputs<'_> {
        Outputs {
            loss: all.then_some(&mut self.loss),
            z_loss: all.then_some(&mut self.z_loss),
            lse: all.then_some(&mut self.lse),
            argmax: all.then_some(&mut self.argmax),
            stats: Some(&mut self.stats),
        }
    }

    fn results<T>(self, summary: CrossEntropySummary, dlogits: Vec<T>) -> Results<T> {
        let Buffers {
            loss,
            z_loss,
            lse,
            argmax,
            stats,
        } = self;
        Results {
            loss,
            z_loss,
            lse,
            argmax,
            stats,
            summary,
            dlogits,
        }
    }
}

/// A task with the labels as i64 or as i32.
trait WithRows<T> {
    fn run<L: Label>(self, batch: &Batch<T>, rows: Rows<'_, L>) -> Result<Results<T>>;
}

fn with_rows<T: Element>(
    batch: &Batch<T>,
    how: How<'_>,
    task: impl WithRows<T>,
) -> Result<Results<T>> {
    let narrow = |ids: &[i64]| -> Vec<i32> { ids.iter().map(|&id| id as i32).collect() };
    if !how.narrow {
        let goldfish = how
            .goldfish
            .map(|(strategy, tokens)| Goldfish { strategy, tokens });
        let rows = Rows {
            labels: &batch.labels,
            weights: batch.weights.as_deref(),
            goldfish,
            shard: batch.shard,
        };
        return task.run(batch, rows);
    }
    let ids = how.goldfish.map(|(_, tokens)| narrow(tokens.hash_ids));
    let halo = how.goldfish.map(|(_, tokens)| narrow(tokens.halo));
    let goldfish = how.goldfish.map(|(strategy, tokens)| Goldfish {
        strategy,
        tokens: Tokens {
            hash_ids: ids.as_deref().unwrap_or_default(),
            halo: halo.as_deref().unwrap_or_default(),
            layout: tokens.layout,
            exempt: tokens.exempt,
        },
    });
    let labels = narrow(&batch.labels);
    let rows = Rows {
        labels: &labels,
        weights: batch.weights.as_deref(),
        goldfish,
        shard: batch.shard,
    };
    task.run(batch, rows)
}

fn dloss<T>(batch: &Batch<T>) -> Option<Dloss<'_>> {
    (batch.dloss.as_ref()).map(|(values, stride)| Dloss {
        values,
        stride: usize::try_from(*stride).expect("forwards"),
    })
}

struct TwoCalls<'a>(&'a CrossEntropy, How<'a>);

impl<T: Element> WithRows<T> for TwoCalls<'_> {
    fn run<L: Label>(self, batch: &Batch<T>, rows: Rows<'_, L>) -> Result<Results<T>> {
        let TwoCalls(op, how) = self;
        let n = batch.labels.len();
        let mut logits = Spread::new(&batch.logits, batch.cols, how.gaps[0], how.groups);
        let mut buffers = Buffers::new(n);
        let call = Forward {
            logits: logits.matrix(),
            rows,
            outputs: buffers.outputs(how.all_outputs),
            normalizer: batch.normalizer,
        };
        let summary = forward(op, call)?;
        let divisor = summary.normalizer;
        if how.in_place {
            let call = BackwardInPlace {
                logits: logits.matrix_mut(),
                rows,
                stats: &buffers.stats,
                divisor,
                dloss: dloss(batch),
            };
            backward_in_place(op, call)?;
            return Ok(buffers.results(summary, logits.collect()));
        }
        let blank = vec![T::from_f64(f64::NAN); batch.logits.len()];
        let mut dlogits = Spread::new(&blank, batch.cols, how.gaps[1], how.groups);
        let call = Backward {
            logits: logits.matrix(),
            rows,
            stats: &buffers.stats,
            dlogits: dlogits.matrix_mut(),
            divisor,
            dloss: dloss(batch),
        };
        backward(op, call)?;
        Ok(buffers.results(summary, dlogits.collect()))
    }
}

/// The forward, then the backward.
pub fn forward_backward<T: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    how: How<'_>,
) -> Result<Results<T>> {
    with_rows(batch, how, TwoCalls(op, how))
}

struct OneCall<'a>(&'a CrossEntropy, How<'a>);

impl<T: Element> WithRows<T> for OneCall<'_> {
    fn run<L: Label>(self, batch: &Batch<T>, rows: Rows<'_, L>) -> Result<Results<T>> {
        let OneCall(op, how) = self;
        let mut logits = Spread::new(&batch.logits, batch.cols, how.gaps[0], how.groups);
        let mut buffers = Buffers::new(batch.labels.len());
        let call = ForwardWithGradient {
            logits: logits.matrix_mut(),
            rows,
            outputs: buffers.outputs(how.all_outputs),
            normalizer: batch.normalizer,
            dloss: dloss(batch),
        };
        let summary = forward_with_gradient(op, call)?;
        Ok(buffers.results(summary, logits.collect()))
    }
}

/// The forward with the gradient in place.
pub fn with_gradient<T: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    how: How<'_>,
) -> Result<Results<T>> {
    with_rows(batch, how, OneCall(op, how))
}

/// The same with the columns spread over ranks, of `widths` columns each: what each rank has in the end. The
/// gradients are those of its own columns.
pub fn sharded<T: Element>(
    op: &CrossEntropy,
    batch: &Batch<T>,
    widths: &[usize],
) -> Result<Vec<Results<T>>> {
    let n = batch.labels.len();
    let rows_of = |first| Rows {
        weights: batch.weights.as_deref(),
        shard: Some(Shard {
            first_class: first as u64,
            classes: batch.cols as u64,
        }),
        ..Rows::new(&batch.labels)
    };
    // The rows of a rank are a matrix with a pitch.
    let firsts = widths.iter().scan(0, |end, &width| {
        *end += width;
        Some((*end - width, width))
    });
    let logits = |(first, cols): (usize, usize)| Matrix {
        elements: &batch.logits[first..(n - 1) * batch.cols + first + cols],
        cols,
        pitch: batch.cols,
        groups: None,
    };
    let mut gathered = Vec::new();
    for columns in firsts.clone() {
        let mut stats = vec![RowStats::default(); n];
        let call = PartialStats {
            logits: logits(columns),
            rows: rows_of(columns.0),
            with_argmax: true,
            stats: &mut stats,
        };
        partial_stats(op, call)?;
        gathered.extend(stats);
    }
    let each = firsts.map(|columns| {
        let mut buffers = Buffers::new(n);
        let call = Finish {
            rows: rows_of(columns.0),
            gathered: &gathered,
            outputs: buffers.outputs(true),
            normalizer: batch.normalizer,
        };
        let summary = finish(op, call)?;
        let mut dlogits = vec![T::from_f64(f64::NAN); n * columns.1];
        let call = Backward {
            logits: logits(columns),
            rows: rows_of(columns.0),
            stats: &gathered,
            dlogits: MatrixMut::dense(&mut dlogits, columns.1),
            divisor: summary.normalizer,
            dloss: dloss(batch),
        };
        backward(op, call)?;
        Ok(buffers.results(summary, dlogits))
    });
    each.collect()
}
