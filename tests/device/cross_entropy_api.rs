//! Cross-entropy through the safe and the raw API: their errors, that a call with an error writes nothing, that both give
//! the same results, graph capture.

#![allow(unsafe_code)]

use std::sync::Arc;

use xact::cuda::cross_entropy::{self, Divisor};
use xact::cuda::goldfish::DeviceTokens;
use xact::cuda::{Input, Output};
use xact::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use xact::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use xact::raw::Matrix;
use xact::raw::cross_entropy::{self as raw, workspace_bytes};
use xact::raw::goldfish::IdType;
use xact::{
    CrossEntropy, CrossEntropySummary, Device, Dtype, Error, Goldfish, Normalizer, Queue, Result,
    Rows, Shard, Strategy,
};
use xact_dev::choose::{Gpu, gpu};
use xact_dev::inputs::Random;

const ROWS: usize = 6;
/// The columns, large enough that the blocks of a cluster share a row on devices with clusters.
const COLS: usize = 1100;
/// The value of outputs before a call that must not write.
const BEFORE: f32 = 77.0;

/// Sets all outputs of a call to the buffers. (A method would borrow the inputs too.)
macro_rules! with_outputs {
    ($call:expr, $b:expr) => {
        $call
            .loss(&mut $b.loss)
            .z_loss(&mut $b.z_loss)
            .lse(&mut $b.lse)
            .argmax(&mut $b.argmax)
            .saved(&mut $b.saved)
    };
}

/// The objects of a queue that each call needs.
fn queue_on(stream: &Arc<CudaStream>) -> Queue {
    let mut queue = Queue::new(stream).unwrap();
    queue.reserve(workspace_bytes(ROWS as u64)).unwrap();
    queue
}

fn queue() -> (Queue, Arc<CudaStream>) {
    let stream = gpu().stream;
    (queue_on(&stream), stream)
}

fn saved_bytes() -> usize {
    op().saved_bytes(ROWS as u64) as usize
}

struct Buffers {
    logits: CudaSlice<f32>,
    dlogits: CudaSlice<f32>,
    labels: CudaSlice<i64>,
    weights: CudaSlice<f32>,
    dloss: CudaSlice<f32>,
    normalizer: CudaSlice<f32>,
    loss: CudaSlice<f32>,
    z_loss: CudaSlice<f32>,
    lse: CudaSlice<f32>,
    argmax: CudaSlice<i32>,
    saved: CudaSlice<u8>,
    summary: CudaSlice<CrossEntropySummary>,
    /// The columns of one rank.
    gathered: CudaSlice<u8>,
    /// The divisor, if it replaces that of the options.
    divide: bool,
}

/// All outputs of the calls, as bits.
#[derive(Clone, Debug, PartialEq)]
struct Contents {
    floats: Vec<Vec<u32>>,
    argmax: Vec<i32>,
    saved: Vec<u8>,
    summary: Vec<CrossEntropySummary>,
}

impl Buffers {
    fn new(stream: &Arc<CudaStream>) -> Buffers {
        let line = |value: f32| stream.clone_htod(&[value; ROWS]).unwrap();
        let saved = vec![0xab_u8; saved_bytes()];
        let mut summary = CrossEntropySummary::default();
        summary.loss = BEFORE;
        let mut b = Buffers {
            logits: stream.clone_htod(&[0.0f32; ROWS * COLS]).unwrap(),
            dlogits: stream.clone_htod(&[BEFORE; ROWS * COLS]).unwrap(),
            labels: stream.clone_htod(&[3i64, 49, -100, 0, 7, 21]).unwrap(),
            weights: stream
                .clone_htod(&[1.0f32, 0.5, 1.0, 2.0, 0.0, 1.0])
                .unwrap(),
            dloss: line(1.5),
            normalizer: stream.clone_htod(&[8.0f32]).unwrap(),
            loss: line(BEFORE),
            z_loss: line(BEFORE),
            lse: line(BEFORE),
            argmax: stream.clone_htod(&[77; ROWS]).unwrap(),
            saved: stream.clone_htod(&saved).unwrap(),
            summary: stream.clone_htod(&[summary]).unwrap(),
            gathered: stream.clone_htod(&saved).unwrap(),
            divide: false,
        };
        b.restore(stream);
        b
    }

    /// The original logits.
    fn restore(&mut self, stream: &Arc<CudaStream>) {
        let values = Random(1).normal::<f32>(ROWS * COLS, 2.0);
        stream.memcpy_htod(&values, &mut self.logits).unwrap();
    }

    fn contents(&self, stream: &Arc<CudaStream>) -> Contents {
        let floats = [
            &self.logits,
            &self.dlogits,
            &self.loss,
            &self.z_loss,
            &self.lse,
        ];
        let floats = floats.map(|b| stream.clone_dtoh(b).unwrap());
        Contents {
            floats: floats
                .map(|b| b.into_iter().map(f32::to_bits).collect())
                .to_vec(),
            argmax: stream.clone_dtoh(&self.argmax).unwrap(),
            saved: stream.clone_dtoh(&self.saved).unwrap(),
            summary: stream.clone_dtoh(&self.summary).unwrap(),
        }
    }

    fn forward(&mut self, op: &CrossEntropy, queue: &mut Queue) -> Result<()> {
        let call = cross_entropy::forward(op, &self.logits, &self.labels, &mut self.summary);
        let mut call = with_outputs!(call.weights(&self.weights), self);
        if self.divide {
            call = call.normalizer(&self.normalizer);
        }
        call.launch(queue)
    }

    fn with_gradient(&mut self, op: &CrossEntropy, queue: &mut Queue) -> Result<()> {
        let (logits, summary) = (&mut self.logits, &mut self.summary);
        let call = cross_entropy::forward_with_gradient(op, logits, &self.labels, summary);
        let call = call.weights(&self.weights).dloss(&self.dloss);
        let mut call = with_outputs!(call, self);
        if self.divide {
            call = call.normalizer(&self.normalizer);
        }
        call.launch(queue)
    }

    fn backward(&mut self, op: &CrossEntropy, queue: &mut Queue) -> Result<()> {
        cross_entropy::backward(
            op,
            &self.logits,
            &self.labels,
            &self.saved,
            Divisor::summary(&self.summary),
            &mut self.dlogits,
        )
        .weights(&self.weights)
        .dloss(&self.dloss)
        .launch(queue)
    }

    fn backward_in_place(&mut self, op: &CrossEntropy, queue: &mut Queue) -> Result<()> {
        let divisor = Divisor::summary(&self.summary);
        let (logits, saved) = (&mut self.logits, &self.saved);
        cross_entropy::backward_in_place(op, logits, &self.labels, saved, divisor)
            .weights(&self.weights)
            .dloss(&self.dloss)
            .launch(queue)
    }

    /// Runs all calls, with one rank.
    fn as_a_rank(&mut self, queue: &mut Queue) -> Result<()> {
        let (op, shard) = (op(), Shard::new(0, COLS as u64));
        let (logits, gathered) = (&self.logits, &mut self.gathered);
        cross_entropy::partial(&op, logits, &self.labels, shard, gathered)
            .weights(&self.weights)
            .with_argmax()
            .launch(queue)?;
        let (gathered, summary) = (&self.gathered, &mut self.summary);
        let call = cross_entropy::finish(&op, &self.labels, shard, gathered, summary);
        with_outputs!(call.weights(&self.weights), self).launch(queue)?;
        self.backward_in_place(&op, queue)
    }
}

fn op() -> CrossEntropy {
    CrossEntropy::default().label_smoothing(0.1).z_loss(1e-3)
}

/// The indices in `Contents::floats` of the logits and the gradients. After a call in place, the logits are the gradients.
const LOGITS: usize = 0;
const DLOGITS: usize = 1;

#[test]
fn every_way_to_the_gradient_is_the_same() {
    let (mut queue, stream) = queue();
    let mut divided = Vec::new();
    for divide in [false, true] {
        for normalizer in [Normalizer::None, Normalizer::Kept, Normalizer::Weight] {
            let op = op().normalizer(normalizer);
            let buffers = || Buffers {
                divide,
                ..Buffers::new(&stream)
            };
            let mut b = buffers();
            b.forward(&op, &mut queue).unwrap();
            b.backward(&op, &mut queue).unwrap();
            let apart = b.contents(&stream);
            b.backward_in_place(&op, &mut queue).unwrap();
            let in_place = b.contents(&stream);
            assert_eq!(in_place.floats[LOGITS], apart.floats[DLOGITS]);
            let mut b = buffers();
            b.with_gradient(&op, &mut queue).unwrap();
            let fused = b.contents(&stream);
            assert_eq!(fused.floats[LOGITS], apart.floats[DLOGITS]);
            assert_eq!(fused.floats[2..], apart.floats[2..]);
            assert_eq!(
                (&fused.argmax, &fused.saved, &fused.summary),
                (&apart.argmax, &apart.saved, &apart.summary)
            );
            assert!(fused.floats[LOGITS].iter().any(|&d| d != 0));
            if divide {
                assert_eq!(fused.summary[0].normalizer, 8.0);
                divided.push(fused);
            }
        }
    }
    // The caller's divisor has priority over the options.
    assert!(divided.windows(2).all(|pair| pair[0] == pair[1]));
}

/// Two micro-batches, both divided by their total of four tokens: the sum of the means is the mean over all four.
#[test]
fn a_normalizer_that_is_given_is_used() {
    let (mut queue, stream) = queue();
    let batches = [
        (
            vec![0.2f32, 0.3, -0.1, 0.4, -0.2, 0.1],
            vec![0i64, 1, 0],
            -0.131_244_8,
        ),
        (vec![0.0, 0.5], vec![1], 0.094_385_2),
    ];
    let four = stream.clone_htod(&[4.0f32]).unwrap();
    for normalizer in [Normalizer::Kept, Normalizer::None, Normalizer::Weight] {
        let op = CrossEntropy::default().normalizer(normalizer);
        for in_one_call in [false, true] {
            let mut mean = 0.0;
            for (logits, labels, expected) in &batches {
                let mut logits = stream.clone_htod(logits).unwrap();
                let labels = stream.clone_htod(labels).unwrap();
                let bytes = op.saved_bytes(labels.len() as u64) as usize;
                let mut saved = stream.alloc_zeros::<u8>(bytes).unwrap();
                let mut summary = stream.alloc_zeros::<CrossEntropySummary>(1).unwrap();
                if in_one_call {
                    let out = &mut summary;
                    cross_entropy::forward_with_gradient(&op, &mut logits, &labels, out)
                        .normalizer(&four)
                        .launch(&mut queue)
                        .unwrap();
                } else {
                    cross_entropy::forward(&op, &logits, &labels, &mut summary)
                        .normalizer(&four)
                        .saved(&mut saved)
                        .launch(&mut queue)
                        .unwrap();
                    let divisor = Divisor::scalar(&four);
                    let logits = &mut logits;
                    cross_entropy::backward_in_place(&op, logits, &labels, &saved, divisor)
                        .launch(&mut queue)
                        .unwrap();
                }
                let summary = stream.clone_dtoh(&summary).unwrap()[0];
                assert_eq!(summary.normalizer, 4.0);
                mean += summary.mean;
                let gradient = stream.clone_dtoh(&logits).unwrap()[0];
                assert!((gradient - expected).abs() <= 2e-7, "{gradient}");
            }
            assert!((mean - 0.636_726_5).abs() <= 2e-7, "{mean}");
        }
    }
}

/// Without rows, buffers may be empty.
#[test]
fn no_rows_need_no_buffers() {
    let (mut queue, stream) = queue();
    let op = CrossEntropy::default();
    let mut before = CrossEntropySummary::default();
    before.loss = BEFORE;
    let mut summary = stream.clone_htod(&[before]).unwrap();
    let mut expected = CrossEntropySummary::default();
    (expected.bad_row, expected.nan_row) = (u64::MAX, u64::MAX);
    let logits = Input::<f32>::empty();
    let labels = Input::<i64>::empty();
    cross_entropy::forward(&op, logits, labels, &mut summary)
        .loss(Output::empty())
        .argmax(Output::empty())
        .saved(Output::empty())
        .launch(&mut queue)
        .unwrap();
    assert_eq!(stream.clone_dtoh(&summary).unwrap(), [expected]);
    cross_entropy::forward_with_gradient(&op, Output::<f32>::empty(), labels, &mut summary)
        .launch(&mut queue)
        .unwrap();
    assert_eq!(stream.clone_dtoh(&summary).unwrap(), [expected]);
    let divisor = Divisor::summary(&summary);
    cross_entropy::backward(
        &op,
        logits,
        labels,
        Input::empty(),
        divisor,
        Output::empty(),
    )
    .launch(&mut queue)
    .unwrap();
    cross_entropy::backward_in_place(
        &op,
        Output::<f32>::empty(),
        labels,
        Input::empty(),
        Divisor::One,
    )
    .launch(&mut queue)
    .unwrap();
}

/// If no row is kept, both back ends give the same bits: 0, not −0.
#[test]
fn no_kept_rows_are_the_same_on_both() {
    let (mut queue, stream) = queue();
    for normalizer in [Normalizer::Kept, Normalizer::Weight] {
        let op = CrossEntropy::default().normalizer(normalizer);
        let (logits, labels) = ([1.0_f32, 2.0], [-100_i64]);
        let host = xact::cpu::cross_entropy::forward(&op, &logits, &labels)
            .run()
            .unwrap();
        let (logits, labels) = (
            stream.clone_htod(&logits).unwrap(),
            stream.clone_htod(&labels).unwrap(),
        );
        let mut summary = stream.alloc_zeros(1).unwrap();
        let call = cross_entropy::forward(&op, &logits, &labels, &mut summary);
        queue.reserve(call.workspace_bytes().unwrap()).unwrap();
        call.launch(&mut queue).unwrap();
        let summary: CrossEntropySummary = stream.clone_dtoh(&summary).unwrap()[0];
        assert_eq!(format!("{host:?}"), format!("{summary:?}"));
        assert_eq!(host.weight.to_bits(), 0);
    }
}

/// With a single row, the stride of the upstream gradients does not matter.
#[test]
fn a_stride_of_one_row_may_be_any() {
    let (mut queue, stream) = queue();
    let op = CrossEntropy::default().normalizer(Normalizer::None);
    let logits = stream.clone_htod(&[0.5_f32, 0.25]).unwrap();
    let labels = stream.clone_htod(&[1_i64]).unwrap();
    let dloss = stream.clone_htod(&[2.0_f32, 7.0]).unwrap();
    let mut run = |stride| {
        let mut summary = stream.alloc_zeros(1).unwrap();
        let mut logits = logits.try_clone().unwrap();
        let call = cross_entropy::forward_with_gradient(&op, &mut logits, &labels, &mut summary)
            .dloss_strided(&dloss, stride);
        queue.reserve(call.workspace_bytes().unwrap()).unwrap();
        call.launch(&mut queue).unwrap();
        stream.clone_dtoh(&logits).unwrap()
    };
    let expected = run(1);
    for stride in [0, 1 << 40, usize::MAX] {
        assert_eq!(run(stride), expected);
    }
}

/// A rank with all columns gives the results of one device, and two ranks give those of the raw API.
#[test]
fn ranks_are_merged() {
    let (mut queue, stream) = queue();
    let op = op();
    let mut whole = Buffers::new(&stream);
    whole.forward(&op, &mut queue).unwrap();
    whole.backward(&op, &mut queue).unwrap();
    let whole = whole.contents(&stream);
    let b = Buffers::new(&stream);
    let widths = [COLS - 13, 13];
    let host = stream.clone_dtoh(&b.logits).unwrap();
    let mut gathered = Vec::new();
    let mut shards = Vec::new();
    for (first, width) in [(0, widths[0]), (widths[0], widths[1])] {
        let columns: Vec<f32> = (host.chunks(COLS))
            .flat_map(|row| row[first..first + width].to_vec())
            .collect();
        let logits = stream.clone_htod(&columns).unwrap();
        let mut saved = stream.alloc_zeros::<u8>(saved_bytes()).unwrap();
        let shard = Shard::new(first as u64, COLS as u64);
        cross_entropy::partial(&op, &logits, &b.labels, shard, &mut saved)
            .weights(&b.weights)
            .with_argmax()
            .launch(&mut queue)
            .unwrap();
        gathered.extend(stream.clone_dtoh(&saved).unwrap());
        shards.push((shard, logits));
    }
    let gathered = stream.clone_htod(&gathered).unwrap();
    for (shard, mut logits) in shards {
        let mut b = Buffers::new(&stream);
        let call = cross_entropy::finish(&op, &b.labels, shard, &gathered, &mut b.summary);
        with_outputs!(call.weights(&b.weights), b)
            .launch(&mut queue)
            .unwrap();
        let divisor = Divisor::summary(&b.summary);
        cross_entropy::backward_in_place(&op, &mut logits, &b.labels, &gathered, divisor)
            .weights(&b.weights)
            .shard(shard)
            .dloss(&b.dloss)
            .launch(&mut queue)
            .unwrap();
        let got = b.contents(&stream);
        assert_eq!(got.argmax, whole.argmax);
        assert_eq!(got.summary[0].kept, whole.summary[0].kept);
        assert_eq!(got.summary[0].correct, whole.summary[0].correct);
        let close = |got: &[u32], expected: &[u32]| {
            for (&got, &expected) in got.iter().zip(expected) {
                let (got, expected) = (f32::from_bits(got), f32::from_bits(expected));
                assert!((got - expected).abs() <= 1e-6 * expected.abs().max(1e-2));
            }
        };
        close(&got.floats[2], &whole.floats[2]);
        let first = shard.first_class as usize;
        let dlogits = stream.clone_dtoh(&logits).unwrap();
        let width = dlogits.len() / ROWS;
        for r in 0..ROWS {
            let mine = dlogits[r * width..][..width].iter().map(|d| d.to_bits());
            let theirs = &whole.floats[DLOGITS][r * COLS + first..][..width];
            close(&mine.collect::<Vec<_>>(), theirs);
        }
    }
}

fn length(what: &'static str, expected: u64, got: u64) -> Error {
    Error::Length {
        what,
        expected,
        got,
    }
}

#[test]
fn wrong_lengths_are_refused_and_nothing_is_written() {
    let (mut queue, stream) = queue();
    let mut b = Buffers {
        divide: true,
        ..Buffers::new(&stream)
    };
    let before = b.contents(&stream);
    let n = ROWS as u64;
    type Call = fn(&mut Buffers, &CrossEntropy, &mut Queue) -> Result<()>;
    let forwards: [Call; 2] = [Buffers::forward, Buffers::with_gradient];
    let backwards: [Call; 2] = [Buffers::backward, Buffers::backward_in_place];
    let every = [forwards, backwards].concat();
    /// Runs the calls with one buffer replaced by `$other`.
    macro_rules! with {
        ($field:ident, $other:expr, $expected:expr, $calls:expr) => {
            with!($field stringify!($field), $other, $expected, $calls)
        };
        ($field:ident $what:expr, $other:expr, $expected:expr, $calls:expr) => {{
            let other = stream.clone_htod($other).unwrap();
            let got = other.len() as u64;
            let good = std::mem::replace(&mut b.$field, other);
            for call in $calls.iter() {
                let refused = call(&mut b, &op(), &mut queue);
                assert_eq!(refused, Err(length($what, $expected, got)));
            }
            b.$field = good;
        }};
    }
    let (needed, all) = (ROWS * (COLS - 1), ROWS * COLS);
    with!(logits, &[1.0f32; ROWS * COLS - 1], needed as u64, every);
    with!(weights, &[1.0f32; 7], n, every);
    with!(loss, &[BEFORE; 5], n, forwards);
    with!(z_loss, &[BEFORE; 5], n, forwards);
    with!(lse, &[BEFORE; 7], n, forwards);
    with!(argmax, &[77; 7], n, forwards);
    let bytes = saved_bytes();
    for wrong in [1, bytes - 1, bytes + 1, 2 * bytes] {
        with!(saved, &vec![0xab_u8; wrong], bytes as u64, forwards);
        // A backward takes the complete saved bytes of several ranks.
        if wrong % bytes != 0 {
            with!(saved, &vec![0xab_u8; wrong], bytes as u64, backwards);
        }
    }
    with!(summary, &[CrossEntropySummary::default(); 2], 1, every);
    with!(dloss, &[1.0f32; 5], n, every[1..]);
    with!(normalizer "the normalizer", &[1.0f32; 2], 1, forwards);
    with!(
        dlogits,
        &[BEFORE; ROWS * COLS - 1],
        all as u64,
        backwards[..1]
    );
    let strategy = Goldfish::new(Strategy::Static { k: 2, start: 0 }).unwrap();
    let strategy = strategy.upload(&queue).unwrap();
    let few = stream.clone_htod(&[1i32; ROWS - 1]).unwrap();
    let op = op();
    let refused = cross_entropy::forward(&op, &b.logits, &b.labels, &mut b.summary)
        .goldfish(&strategy, DeviceTokens::rows(&few, ROWS - 1))
        .launch(&mut queue);
    assert_eq!(refused, Err(length("hash_ids", n, n - 1)));
    let shard = Shard::new(0, COLS as u64);
    let mut short = stream.clone_htod(&vec![0xab_u8; bytes - 1]).unwrap();
    let call = cross_entropy::partial(&op, &b.logits, &b.labels, shard, &mut short);
    let of_saved = |got: usize| Err(length("saved", bytes as u64, got as u64));
    assert_eq!(call.launch(&mut queue), of_saved(bytes - 1));
    let call = cross_entropy::finish(&op, &b.labels, shard, &short, &mut b.summary);
    assert_eq!(call.launch(&mut queue), of_saved(bytes - 1));
    assert_eq!(stream.clone_dtoh(&short).unwrap(), vec![0xab_u8; bytes - 1]);
    assert_eq!(b.contents(&stream), before);
    b.forward(&op, &mut queue).unwrap();
}

#[test]
fn options_classes_and_pitches_are_refused() {
    let (mut queue, stream) = queue();
    let mut b = Buffers::new(&stream);
    let before = b.contents(&stream);
    let smoothing = |v| op().label_smoothing(v);
    let z_loss = |v| op().z_loss(v);
    let softcap = |v| op().softcap(v);
    let nan = f32::NAN;
    let out_of_range = [
        smoothing(-0.1),
        smoothing(1.0),
        smoothing(nan),
        z_loss(-1e-9),
        z_loss(f32::INFINITY),
        z_loss(nan),
        softcap(0.0),
        softcap(-30.0),
        softcap(1e-40),
        softcap(f32::INFINITY),
        softcap(nan),
    ];
    let classes = |vocab| op().vocab(vocab);
    for op in out_of_range {
        let results = [
            b.forward(&op, &mut queue),
            b.with_gradient(&op, &mut queue),
            b.backward(&op, &mut queue),
            b.backward_in_place(&op, &mut queue),
        ];
        for result in results {
            assert!(matches!(result, Err(Error::OutOfRange { .. })), "{op:?}");
        }
    }
    for op in [classes(0), classes(COLS as u64 + 1)] {
        let refused = b.forward(&op, &mut queue);
        assert!(matches!(
            refused,
            Err(Error::Classes { .. } | Error::Length { .. })
        ));
    }
    let op = op();
    let mut narrow = |rows: Rows| {
        let logits = Output::rows(&mut b.logits, rows);
        let call = cross_entropy::forward_with_gradient(&op, logits, &b.labels, &mut b.summary);
        with_outputs!(call.weights(&b.weights), b).launch(&mut queue)
    };
    let rows = Rows::new(ROWS, COLS);
    assert!(matches!(
        narrow(rows.pitch(COLS - 1)),
        Err(Error::Pitch { .. })
    ));
    assert!(matches!(narrow(rows.offset(1)), Err(Error::Length { .. })));
    let more = narrow(Rows::new(ROWS + 1, COLS - 200));
    assert_eq!(more, Err(length("labels", 7, 6)));
    // Logits and gradients with the same number of elements in other shapes.
    let call = cross_entropy::backward(
        &op,
        Input::rows(&b.logits, rows),
        &b.labels,
        &b.saved,
        Divisor::One,
        Output::rows(&mut b.dlogits, Rows::new(2 * ROWS, COLS / 2)),
    );
    let expected = Error::Shape {
        what: "dlogits",
        expected: [6, 1100],
        got: [12, 550],
    };
    assert_eq!(call.launch(&mut queue), Err(expected));
    assert_eq!(b.contents(&stream), before);
}

#[test]
fn workspaces_and_devices_are_checked() {
    let stream = gpu().stream;
    let mut queue = Queue::new(&stream).unwrap();
    let mut b = Buffers::new(&stream);
    let before = b.contents(&stream);
    let needed = workspace_bytes(ROWS as u64);
    let op = op();
    {
        let call = cross_entropy::forward(&op, &b.logits, &b.labels, &mut b.summary);
        assert_eq!(call.workspace_bytes(), Ok(needed));
        let call = cross_entropy::backward(
            &op,
            &b.logits,
            &b.labels,
            &b.saved,
            Divisor::One,
            &mut b.dlogits,
        );
        assert_eq!(call.workspace_bytes(), Ok(0));
    }
    for got in [0, 8, needed - 1] {
        queue.reserve(got).unwrap();
        let small = Err(Error::Workspace { needed, got });
        assert_eq!(b.forward(&op, &mut queue), small);
        assert_eq!(b.with_gradient(&op, &mut queue), small);
        assert_eq!(b.as_a_rank(&mut queue), small);
        let (shard, summary) = (Shard::new(0, COLS as u64), &mut b.summary);
        let call = cross_entropy::finish(&op, &b.labels, shard, &b.gathered, summary);
        assert_eq!(call.launch(&mut queue), small);
    }
    // Under the per-thread default stream, the same handle is another stream in each thread.
    let per_thread = queue.device().context().per_thread_stream();
    let mut theirs = std::thread::spawn(move || queue_on(&per_thread))
        .join()
        .unwrap();
    assert_eq!(b.forward(&op, &mut theirs), Err(Error::WrongThread));
    assert_eq!(b.with_gradient(&op, &mut theirs), Err(Error::WrongThread));
    if let Ok(second) = Device::new(1) {
        let theirs = second.context().new_stream().unwrap();
        let mut theirs = queue_on(&theirs);
        let wrong = |what| Err(Error::WrongContext { what });
        assert_eq!(b.forward(&op, &mut theirs), wrong("labels"));
        assert_eq!(b.with_gradient(&op, &mut theirs), wrong("labels"));
        assert_eq!(b.backward(&op, &mut theirs), wrong("labels"));
        assert_eq!(b.as_a_rank(&mut theirs), wrong("labels"));
    }
    assert_eq!(b.contents(&stream), before);
    queue.reserve(needed).unwrap();
    b.forward(&op, &mut queue).unwrap();
}

/// The addresses of the raw API.
#[test]
fn raw_calls_refuse_what_can_be_seen() {
    let Gpu { device, stream, .. } = gpu();
    let b = Buffers::new(&stream);
    let before = b.contents(&stream);
    let workspace = stream.alloc_zeros::<u8>(1 << 16).unwrap();
    let ptr = |buffer: &CudaSlice<f32>| buffer.device_ptr(&stream).0;
    let row_data = raw::Rows {
        rows: ROWS as u64,
        labels: b.labels.device_ptr(&stream).0,
        label_type: IdType::I64,
        weights: Some(ptr(&b.weights)),
        goldfish: None,
        shard: None,
        blocks: xact::raw::Blocks::All,
    };
    let logits = raw::Logits {
        dtype: Dtype::F32,
        cols: COLS as u64,
        matrix: Matrix::contiguous(ptr(&b.logits), COLS as u64).into(),
    };
    let good = raw::Forward {
        rows: row_data,
        logits,
        outputs: raw::Outputs {
            loss: Some(ptr(&b.loss)),
            z_loss: Some(ptr(&b.z_loss)),
            lse: Some(ptr(&b.lse)),
            argmax: Some(b.argmax.device_ptr(&stream).0),
            saved: Some(b.saved.device_ptr(&stream).0),
            summary: b.summary.device_ptr(&stream).0,
        },
        normalizer: None,
        scratch: raw::Scratch {
            workspace: workspace.device_ptr(&stream).0,
            workspace_bytes: 1 << 16,
        },
    };
    type Change<'a> = &'a dyn Fn(&mut raw::Forward<'_>);
    let forward = |change: Change<'_>| {
        let mut call = good;
        change(&mut call);
        // SAFETY: the buffers have the lengths of the call and live past the next synchronisation. The changes of this test
        // are errors before a launch.
        unsafe { raw::forward(&device, stream.cu_stream(), &op(), &call) }
    };
    let fused = |change: Change<'_>| {
        let mut forward = good;
        change(&mut forward);
        let call = raw::ForwardWithGradient {
            forward,
            upstream: raw::Upstream::default(),
            cluster: None,
        };
        // SAFETY: as above.
        unsafe { raw::forward_with_gradient(&device, stream.cu_stream(), &op(), &call) }
    };
    let null = |what| Error::Null { what };
    let overlap = |output, other| Error::Overlap { output, other };
    let narrow = Error::Pitch {
        what: "logits",
        pitch: COLS as u64 - 1,
        cols: COLS as u64,
    };
    let cases: [(Error, Change<'_>); 15] = [
        (null("logits"), &|c| c.logits.matrix.ptr = 0),
        (null("labels"), &|c| c.rows.labels = 0),
        (null("weights"), &|c| c.rows.weights = Some(0)),
        (null("loss"), &|c| c.outputs.loss = Some(0)),
        (null("saved"), &|c| c.outputs.saved = Some(0)),
        (null("summary"), &|c| c.outputs.summary = 0),
        (null("the workspace"), &|c| c.scratch.workspace = 0),
        (overlap("loss", "logits"), &|c| {
            c.outputs.loss = Some(c.logits.matrix.ptr + 8)
        }),
        (overlap("lse", "loss"), &|c| c.outputs.lse = c.outputs.loss),
        (overlap("saved", "labels"), &|c| {
            c.outputs.saved = Some(c.rows.labels)
        }),
        (overlap("the workspace", "summary"), &|c| {
            c.scratch.workspace = c.outputs.summary
        }),
        (narrow.clone(), &|c| c.logits.matrix.pitch = COLS as u64 - 1),
        (narrow, &|c| {
            (c.logits.matrix.pitch, c.logits.matrix.group_rows) = (COLS as u64 - 1, 2);
            c.logits.matrix.group_pitch = 5000;
        }),
        (length("labels", 8, ROWS as u64), &|c| {
            (c.logits.matrix.group_rows, c.logits.matrix.group_pitch) = (4, 9999)
        }),
        (
            Error::GroupPitch {
                what: "logits",
                pitch: 2 * COLS as u64 - 1,
                len: 2 * COLS as u64,
            },
            &|c| {
                c.logits.matrix.group_rows = 2;
                c.logits.matrix.group_pitch = 2 * COLS as u64 - 1;
            },
        ),
    ];
    for (expected, change) in &cases {
        assert_eq!(forward(*change).as_ref(), Err(expected));
        // In place, the logits are an output, and the error names them first.
        match (expected, fused(*change)) {
            (
                Error::Overlap {
                    other: "logits", ..
                },
                Err(Error::Overlap { .. }),
            ) => {}
            (expected, got) => assert_eq!(got.as_ref(), Err(expected)),
        }
    }
    assert_eq!(
        fused(&|c| c.logits.matrix.ptr = c.rows.weights.unwrap() - 4),
        Err(overlap("logits", "weights"))
    );
    let misaligned: [(&str, u64, Change<'_>); 6] = [
        ("logits", 4, &|c| c.logits.matrix.ptr += 2),
        ("labels", 8, &|c| c.rows.labels += 4),
        ("loss", 4, &|c| {
            c.outputs.loss = c.outputs.loss.map(|p| p + 2)
        }),
        ("saved", 4, &|c| {
            c.outputs.saved = c.outputs.saved.map(|p| p + 1)
        }),
        ("summary", 8, &|c| c.outputs.summary += 4),
        ("the workspace", 8, &|c| c.scratch.workspace += 4),
    ];
    for (name, bytes, change) in misaligned {
        let result = forward(change);
        let Err(Error::Misaligned {
            what, alignment, ..
        }) = result
        else {
            panic!("{name}: {result:?}");
        };
        assert_eq!((what, alignment), (name, bytes));
    }
    let shard = |first_class, classes| {
        forward(&move |c| c.rows.shard = Some(Shard::new(first_class, classes)))
    };
    for (first, classes) in [
        (0, COLS as u64 - 1),
        (1, COLS as u64),
        (u64::MAX, COLS as u64),
        (0, u64::from(u32::MAX)),
        (0, 0),
    ] {
        let refused = shard(first, classes);
        assert!(matches!(refused, Err(Error::Classes { .. })), "{refused:?}");
    }
    let backward = |change: &dyn Fn(&mut raw::Backward<'_>)| {
        let mut call = raw::Backward {
            rows: row_data,
            logits,
            saved: good.outputs.saved.unwrap(),
            ranks: 1,
            dlogits: Matrix::contiguous(ptr(&b.dlogits), COLS as u64).into(),
            normalizer: Some(ptr(&b.normalizer)),
            upstream: raw::Upstream::default(),
        };
        change(&mut call);
        // SAFETY: as above.
        unsafe { raw::backward(&device, stream.cu_stream(), &op(), &call) }
    };
    type ChangeBackward<'a> = &'a dyn Fn(&mut raw::Backward<'_>);
    let upstream = |dloss, stride| raw::Upstream {
        dloss: Some(dloss),
        stride,
    };
    let backwards: [(Error, ChangeBackward<'_>); 9] = [
        (null("dlogits"), &|c| c.dlogits.ptr = 0),
        (null("saved"), &|c| c.saved = 0),
        (overlap("dlogits", "logits"), &|c| {
            c.dlogits.ptr = c.logits.matrix.ptr + 4
        }),
        // The groups start at the same place, their rows do not.
        (overlap("dlogits", "logits"), &|c| {
            let group_pitch = 3 * COLS as u64;
            (c.logits.matrix.group_rows, c.logits.matrix.group_pitch) = (2, group_pitch);
            c.dlogits = c.logits.matrix;
            c.dlogits.pitch += 1;
        }),
        (overlap("dlogits", "saved"), &|c| {
            c.saved = c.dlogits.ptr + 40
        }),
        (overlap("dlogits", "the normalizer"), &|c| {
            c.normalizer = Some(c.dlogits.ptr)
        }),
        (overlap("dlogits", "dloss"), &|c| {
            c.upstream = upstream(c.dlogits.ptr + 8, -1)
        }),
        (null("dloss"), &|c| c.upstream = upstream(0, 1)),
        (
            Error::OutOfRange {
                what: "the number of ranks",
                got: 0.0,
                range: "[1, 2^64)",
            },
            &|c| c.ranks = 0,
        ),
    ];
    assert!(matches!(
        backward(&|c| (c.dlogits.group_rows, c.dlogits.group_pitch) = (2, u64::MAX / 2)),
        Err(Error::TooLarge { .. })
    ));
    for (expected, change) in &backwards {
        assert_eq!(backward(*change).as_ref(), Err(expected));
    }
    for stride in [i64::MIN, i64::MAX, 1 << 62] {
        let refused = backward(&|c| c.upstream = upstream(ptr(&b.dloss), stride));
        assert!(refused.is_err(), "{stride}");
    }
    let refused = backward(&|c| (c.rows.rows, c.ranks) = (u64::MAX / 8, 1));
    assert!(
        matches!(refused, Err(Error::TooLarge { .. })),
        "{refused:?}"
    );
    assert_eq!(b.contents(&stream), before, "a refused call wrote");
    forward(&|_| {}).unwrap();
    // The label 49 is a class, but of another rank, and there is no other rank.
    forward(&|c| {
        c.logits.cols = 49;
        c.rows.shard = Some(Shard::new(0, COLS as u64));
    })
    .unwrap();
    assert_eq!(stream.clone_dtoh(&b.loss).unwrap()[1], f32::INFINITY);
    let summary = stream.clone_dtoh(&b.summary).unwrap()[0];
    assert_eq!((summary.kept, summary.bad_row), (4, u64::MAX));
    backward(&|_| {}).unwrap();
    assert_ne!(b.contents(&stream), before);
}

/// Each kind of call, alone or with the calls that it needs.
type Call = fn(&mut Buffers, &mut Queue) -> Result<()>;
const CALLS: [Call; 4] = [
    |b, queue| {
        b.forward(&op(), queue)?;
        b.backward(&op(), queue)
    },
    |b, queue| {
        b.forward(&op(), queue)?;
        b.backward_in_place(&op(), queue)
    },
    |b, queue| b.with_gradient(&op(), queue),
    |b, queue| b.as_a_rank(queue),
];

/// A capture allows only launches: an allocation, a synchronisation or a load would end it with an error.
#[test]
fn every_call_can_be_captured_and_replayed() {
    let Gpu { device, .. } = gpu();
    device.preload().unwrap();
    // cudarc's documentation asks for this: waits on events from outside would break the capture.
    // SAFETY: everything below runs on one stream.
    unsafe { device.context().disable_event_tracking() };
    let stream = device.context().new_stream().unwrap();
    let mut queue = queue_on(&stream);
    for call in CALLS {
        let mut b = Buffers::new(&stream);
        let before = b.contents(&stream);
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
        call(&mut b, &mut queue).unwrap();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).unwrap().expect("launches");
        assert_eq!(b.contents(&stream), before);
        // Not earlier: the capture is the first use of the kernels.
        let mut expected = Buffers::new(&stream);
        call(&mut expected, &mut queue).unwrap();
        let expected = expected.contents(&stream);
        for _ in 0..3 {
            b.restore(&stream);
            graph.launch().unwrap();
            assert_eq!(b.contents(&stream), expected);
        }
    }
}

/// Calls alternate with copies of their buffers on another stream, without synchronisation. The order is only determined by
/// what each call tells cudarc about its reads and writes, and the emulator reports accesses without an order.
#[test]
fn two_streams_wait_for_each_other() {
    let Gpu { device, .. } = gpu();
    let [calls, copies] = [(); 2].map(|()| device.context().new_stream().unwrap());
    let same = Buffers::new(&copies);
    let (labels, weights) = (
        copies.clone_dtoh(&same.labels).unwrap(),
        copies.clone_dtoh(&same.weights).unwrap(),
    );
    let (dloss, normalizer) = (
        copies.clone_dtoh(&same.dloss).unwrap(),
        copies.clone_dtoh(&same.normalizer).unwrap(),
    );
    // The buffers that the calls read are overwritten with the same values, and those that they write are read.
    type Copy<'a> = &'a dyn Fn(&mut Buffers);
    let each: [Copy; 12] = [
        &|b| b.restore(&copies),
        &|b| copies.memcpy_htod(&labels, &mut b.labels).unwrap(),
        &|b| copies.memcpy_htod(&weights, &mut b.weights).unwrap(),
        &|b| copies.memcpy_htod(&dloss, &mut b.dloss).unwrap(),
        &|b| copies.memcpy_htod(&normalizer, &mut b.normalizer).unwrap(),
        &|b| drop(copies.clone_dtoh(&b.dlogits).unwrap()),
        &|b| drop(copies.clone_dtoh(&b.loss).unwrap()),
        &|b| drop(copies.clone_dtoh(&b.z_loss).unwrap()),
        &|b| drop(copies.clone_dtoh(&b.lse).unwrap()),
        &|b| drop(copies.clone_dtoh(&b.argmax).unwrap()),
        &|b| drop(copies.clone_dtoh(&b.saved).unwrap()),
        &|b| drop(copies.clone_dtoh(&b.summary).unwrap()),
    ];
    let mut queue = queue_on(&calls);
    for call in CALLS {
        let mut b = Buffers::new(&calls);
        call(&mut b, &mut queue).unwrap();
        let expected = b.contents(&copies);
        for copy in each {
            call(&mut b, &mut queue).unwrap();
            copy(&mut b);
        }
        b.restore(&copies);
        call(&mut b, &mut queue).unwrap();
        assert_eq!(b.contents(&copies), expected);
    }
}
