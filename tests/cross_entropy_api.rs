//! Cross-entropy through the safe and the raw API: what they refuse, that a refusal writes nothing, that both do the
//! same, graph capture.

#![allow(unsafe_code)]

mod support;

use std::sync::Arc;

use support::choose::{Choice, Gpu, open};
use support::inputs::Random;
use xact::activation::{Output, Rows as Place};
use xact::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use xact::cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use xact::loss::cross_entropy::device::{
    Backward, BackwardInPlace, Divisor, Dloss, Finish, Forward, ForwardWithGradient, Outputs,
    PartialStats, Rows, Shard,
};
use xact::raw::Matrix;
use xact::raw::cross_entropy::{self as raw, workspace_bytes};
use xact::raw::goldfish::IdType;
use xact::{
    CrossEntropy, CrossEntropySummary, Device, Dtype, Error, Normalizer, Result, RowStats,
    Workspace,
};

const ROWS: usize = 6;
/// Enough that blocks of a cluster share a row, where there are clusters.
const COLS: usize = 1100;
/// What outputs hold before a call that must not write.
const BEFORE: f32 = 77.0;

fn gpu() -> Gpu {
    open(Choice::from_env().unwrap()).unwrap()
}

/// All outputs of some buffers. (A method would borrow the inputs too.)
macro_rules! outputs {
    ($b:expr) => {
        Outputs {
            loss: Some(&mut $b.loss),
            z_loss: Some(&mut $b.z_loss),
            lse: Some(&mut $b.lse),
            argmax: Some(&mut $b.argmax),
            stats: &mut $b.stats,
            summary: &mut $b.summary,
        }
    };
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
    stats: CudaSlice<RowStats>,
    summary: CudaSlice<CrossEntropySummary>,
    /// Of one rank.
    gathered: CudaSlice<RowStats>,
    workspace: Workspace,
}

/// Everything that calls write, as bits.
#[derive(Clone, Debug, PartialEq)]
struct Contents {
    floats: Vec<Vec<u32>>,
    argmax: Vec<i32>,
    stats: Vec<RowStats>,
    summary: Vec<CrossEntropySummary>,
}

impl Buffers {
    fn new(stream: &Arc<CudaStream>) -> Buffers {
        let line = |value: f32| stream.clone_htod(&[value; ROWS]).unwrap();
        let stats = RowStats {
            max: BEFORE,
            ..RowStats::default()
        };
        let summary = CrossEntropySummary {
            loss: BEFORE,
            ..CrossEntropySummary::default()
        };
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
            stats: stream.clone_htod(&[stats; ROWS]).unwrap(),
            summary: stream.clone_htod(&[summary]).unwrap(),
            gathered: stream.clone_htod(&[stats; ROWS]).unwrap(),
            workspace: Workspace::new(stream, workspace_bytes(ROWS as u64)).unwrap(),
        };
        b.restore(stream);
        b
    }

    /// The logits as they were.
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
            stats: stream.clone_dtoh(&self.stats).unwrap(),
            summary: stream.clone_dtoh(&self.summary).unwrap(),
        }
    }

    fn forward(
        &mut self,
        op: &CrossEntropy,
        device: &Device,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        let call = Forward {
            logits: (&self.logits).into(),
            rows: rows(&self.labels, &self.weights),
            outputs: outputs!(self),
            normalizer: Some(&self.normalizer),
            workspace: &mut self.workspace,
        };
        op.forward(device, stream, call)
    }

    fn with_gradient(
        &mut self,
        op: &CrossEntropy,
        device: &Device,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        let call = ForwardWithGradient {
            logits: (&mut self.logits).into(),
            rows: rows(&self.labels, &self.weights),
            outputs: outputs!(self),
            normalizer: Some(&self.normalizer),
            dloss: Some(Dloss {
                buffer: &self.dloss,
                stride: 1,
            }),
            workspace: &mut self.workspace,
        };
        op.forward_with_gradient(device, stream, call)
    }

    fn backward(
        &mut self,
        op: &CrossEntropy,
        device: &Device,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        let call = Backward {
            logits: (&self.logits).into(),
            rows: rows(&self.labels, &self.weights),
            stats: &self.stats,
            dlogits: (&mut self.dlogits).into(),
            divisor: Divisor::Summary(&self.summary),
            dloss: Some(Dloss {
                buffer: &self.dloss,
                stride: 1,
            }),
        };
        op.backward(device, stream, call)
    }

    fn backward_in_place(
        &mut self,
        op: &CrossEntropy,
        device: &Device,
        stream: &Arc<CudaStream>,
    ) -> Result<()> {
        let call = BackwardInPlace {
            logits: (&mut self.logits).into(),
            rows: rows(&self.labels, &self.weights),
            stats: &self.stats,
            divisor: Divisor::Summary(&self.summary),
            dloss: Some(Dloss {
                buffer: &self.dloss,
                stride: 1,
            }),
        };
        op.backward_in_place(device, stream, call)
    }

    /// Everything that one rank of one does.
    fn as_a_rank(&mut self, device: &Device, stream: &Arc<CudaStream>) -> Result<()> {
        let of_rank = Rows {
            shard: Some(Shard {
                first_class: 0,
                classes: COLS as u64,
            }),
            ..rows(&self.labels, &self.weights)
        };
        let call = PartialStats {
            logits: (&self.logits).into(),
            rows: of_rank,
            with_argmax: true,
            stats: &mut self.gathered,
            workspace: &mut self.workspace,
        };
        op().partial_stats(device, stream, call)?;
        let call = Finish {
            rows: of_rank,
            gathered: &self.gathered,
            outputs: outputs!(self),
            normalizer: None,
            workspace: &mut self.workspace,
        };
        op().finish(device, stream, call)?;
        self.backward_in_place(&op(), device, stream)
    }
}

fn rows<'a>(labels: &'a CudaSlice<i64>, weights: &'a CudaSlice<f32>) -> Rows<'a, i64> {
    Rows {
        weights: Some(weights),
        ..Rows::new(labels)
    }
}

fn op() -> CrossEntropy {
    CrossEntropy {
        label_smoothing: 0.1,
        z_loss: 1e-3,
        ..CrossEntropy::default()
    }
}

/// Which of `Contents::floats` are gradients after a call that works in place.
const LOGITS: usize = 0;
const DLOGITS: usize = 1;

#[test]
fn every_way_to_the_gradient_is_the_same() {
    let Gpu { device, stream, .. } = gpu();
    for normalizer in [Normalizer::Kept, Normalizer::Weight, Normalizer::External] {
        let op = CrossEntropy { normalizer, ..op() };
        let mut b = Buffers::new(&stream);
        b.forward(&op, &device, &stream).unwrap();
        b.backward(&op, &device, &stream).unwrap();
        let apart = b.contents(&stream);
        b.backward_in_place(&op, &device, &stream).unwrap();
        let in_place = b.contents(&stream);
        assert_eq!(in_place.floats[LOGITS], apart.floats[DLOGITS]);
        let mut b = Buffers::new(&stream);
        b.with_gradient(&op, &device, &stream).unwrap();
        let fused = b.contents(&stream);
        assert_eq!(fused.floats[LOGITS], apart.floats[DLOGITS]);
        assert_eq!(fused.floats[2..], apart.floats[2..]);
        assert_eq!(
            (&fused.argmax, &fused.stats, &fused.summary),
            (&apart.argmax, &apart.stats, &apart.summary)
        );
        assert!(fused.floats[LOGITS].iter().any(|&d| d != 0));
    }
}

/// A rank with all columns is what one device is, and two ranks are what they are through the raw API.
#[test]
fn ranks_are_merged() {
    let Gpu { device, stream, .. } = gpu();
    let mut whole = Buffers::new(&stream);
    whole.forward(&op(), &device, &stream).unwrap();
    whole.backward(&op(), &device, &stream).unwrap();
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
        let mut stats = stream.clone_htod(&[RowStats::default(); ROWS]).unwrap();
        let mut workspace = Workspace::new(&stream, workspace_bytes(ROWS as u64)).unwrap();
        let shard = Shard {
            first_class: first as u64,
            classes: COLS as u64,
        };
        let call = PartialStats {
            logits: (&logits).into(),
            rows: Rows {
                shard: Some(shard),
                ..rows(&b.labels, &b.weights)
            },
            with_argmax: true,
            stats: &mut stats,
            workspace: &mut workspace,
        };
        op().partial_stats(&device, &stream, call).unwrap();
        gathered.extend(stream.clone_dtoh(&stats).unwrap());
        shards.push((shard, logits));
    }
    let gathered = stream.clone_htod(&gathered).unwrap();
    for (shard, mut logits) in shards {
        let mut b = Buffers::new(&stream);
        let of_rank = || Rows {
            shard: Some(shard),
            ..rows(&b.labels, &b.weights)
        };
        let call = Finish {
            rows: of_rank(),
            gathered: &gathered,
            outputs: outputs!(b),
            normalizer: None,
            workspace: &mut b.workspace,
        };
        op().finish(&device, &stream, call).unwrap();
        let call = BackwardInPlace {
            logits: (&mut logits).into(),
            rows: of_rank(),
            stats: &gathered,
            divisor: Divisor::Summary(&b.summary),
            dloss: Some(Dloss {
                buffer: &b.dloss,
                stride: 1,
            }),
        };
        op().backward_in_place(&device, &stream, call).unwrap();
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

#[test]
fn wrong_lengths_are_refused_and_nothing_is_written() {
    let Gpu { device, stream, .. } = gpu();
    let mut b = Buffers::new(&stream);
    let before = b.contents(&stream);
    let length = |what, expected, got| {
        Err(Error::Length {
            what,
            expected,
            got,
        })
    };
    let n = ROWS as u64;
    /// Runs the calls with one buffer exchanged for `$other`.
    macro_rules! with {
        ($field:ident, $other:expr, $what:literal, $expected:expr, [$($call:ident),+]) => {{
            let other = stream.clone_htod($other).unwrap();
            let got = other.len() as u64;
            let good = std::mem::replace(&mut b.$field, other);
            $(assert_eq!(
                b.$call(&op(), &device, &stream),
                length($what, $expected, got),
                stringify!($field, $call)
            );)+
            b.$field = good;
        }};
    }
    with!(
        logits,
        &[1.0f32; ROWS * COLS - 1],
        "logits",
        (ROWS * (COLS - 1)) as u64,
        [forward, with_gradient, backward, backward_in_place]
    );
    with!(
        weights,
        &[1.0f32; 7],
        "weights",
        n,
        [forward, with_gradient, backward, backward_in_place]
    );
    with!(loss, &[BEFORE; 5], "loss", n, [forward, with_gradient]);
    with!(z_loss, &[BEFORE; 5], "z_loss", n, [forward, with_gradient]);
    with!(lse, &[BEFORE; 7], "lse", n, [forward, with_gradient]);
    with!(argmax, &[77; 7], "argmax", n, [forward, with_gradient]);
    with!(
        stats,
        &[RowStats::default(); 7],
        "stats",
        n,
        [forward, with_gradient, backward, backward_in_place]
    );
    with!(
        summary,
        &[CrossEntropySummary::default(); 2],
        "summary",
        1,
        [forward, with_gradient, backward, backward_in_place]
    );
    with!(
        dloss,
        &[1.0f32; 5],
        "dloss",
        n,
        [with_gradient, backward, backward_in_place]
    );
    with!(
        normalizer,
        &[1.0f32; 2],
        "the normalizer",
        1,
        [forward, with_gradient]
    );
    with!(
        dlogits,
        &[BEFORE; ROWS * COLS - 1],
        "dlogits",
        (ROWS * COLS) as u64,
        [backward]
    );
    assert_eq!(b.contents(&stream), before);
    b.forward(&op(), &device, &stream).unwrap();
}

#[test]
fn options_classes_and_pitches_are_refused() {
    let Gpu { device, stream, .. } = gpu();
    let mut b = Buffers::new(&stream);
    let before = b.contents(&stream);
    let smoothing = |v| CrossEntropy {
        label_smoothing: v,
        ..op()
    };
    let z_loss = |v| CrossEntropy { z_loss: v, ..op() };
    let softcap = |v| CrossEntropy {
        softcap: Some(v),
        ..op()
    };
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
    let classes = |vocab| CrossEntropy {
        vocab: Some(vocab),
        ..op()
    };
    for op in out_of_range {
        let results = [
            b.forward(&op, &device, &stream),
            b.with_gradient(&op, &device, &stream),
            b.backward(&op, &device, &stream),
            b.backward_in_place(&op, &device, &stream),
        ];
        for result in results {
            assert!(matches!(result, Err(Error::Option { .. })), "{op:?}");
        }
    }
    for op in [classes(0), classes(COLS as u64 + 1)] {
        let refused = b.forward(&op, &device, &stream);
        assert!(matches!(
            refused,
            Err(Error::Classes { .. } | Error::Length { .. })
        ));
    }
    let mut narrow = |offset, pitch| {
        let place = Place {
            offset,
            rows: ROWS,
            cols: COLS,
            pitch,
        };
        let call = ForwardWithGradient {
            logits: Output::rows(&mut b.logits, place),
            rows: rows(&b.labels, &b.weights),
            outputs: outputs!(b),
            normalizer: None,
            dloss: None,
            workspace: &mut b.workspace,
        };
        op().forward_with_gradient(&device, &stream, call)
    };
    assert!(matches!(narrow(0, COLS - 1), Err(Error::Pitch { .. })));
    assert!(matches!(narrow(1, COLS), Err(Error::Length { .. })));
    let external = CrossEntropy {
        normalizer: Normalizer::External,
        ..op()
    };
    let call = Forward {
        logits: (&b.logits).into(),
        rows: rows(&b.labels, &b.weights),
        outputs: outputs!(b),
        normalizer: None,
        workspace: &mut b.workspace,
    };
    assert_eq!(
        external.forward(&device, &stream, call),
        Err(Error::Null {
            what: "the normalizer"
        })
    );
    assert_eq!(b.contents(&stream), before);
}

#[test]
fn workspaces_streams_and_devices_are_checked() {
    let Gpu { device, stream, .. } = gpu();
    let mut b = Buffers::new(&stream);
    let before = b.contents(&stream);
    let other = device.context().new_stream().unwrap();
    assert_eq!(b.forward(&op(), &device, &other), Err(Error::WrongStream));
    assert_eq!(
        b.with_gradient(&op(), &device, &other),
        Err(Error::WrongStream)
    );
    let needed = workspace_bytes(ROWS as u64);
    b.workspace = Workspace::new(&stream, needed - 1).unwrap();
    let small = Err(Error::Workspace {
        needed,
        got: needed - 1,
    });
    assert_eq!(b.forward(&op(), &device, &stream), small);
    assert_eq!(b.with_gradient(&op(), &device, &stream), small);
    b.workspace = Workspace::new(&stream, needed).unwrap();
    if let Ok(second) = Device::new(1) {
        let theirs = second.context().new_stream().unwrap();
        let wrong = |what| Err(Error::WrongContext { what });
        assert_eq!(b.forward(&op(), &second, &stream), wrong("the stream"));
        assert_eq!(b.forward(&op(), &second, &theirs), wrong("labels"));
        assert_eq!(b.backward(&op(), &second, &theirs), wrong("labels"));
    }
    assert_eq!(b.contents(&stream), before);
}

/// What the raw API sees in addresses.
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
        max_blocks: None,
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
            stats: b.stats.device_ptr(&stream).0,
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
        // SAFETY: the buffers are as long as the call says and live past the next synchronisation; the changes
        // of this test are refused before a launch.
        unsafe { raw::forward(&device, stream.cu_stream(), &op(), &call) }
    };
    let fused = |change: Change<'_>| {
        let mut forward = good;
        change(&mut forward);
        let call = raw::ForwardWithGradient {
            forward,
            upstream: raw::Upstream::default(),
        };
        // SAFETY: as above.
        unsafe { raw::forward_with_gradient(&device, stream.cu_stream(), &op(), &call) }
    };
    let null = |what| Error::Null { what };
    let overlap = |output, other| Error::Overlap { output, other };
    let cases: [(Error, Change<'_>); 15] = [
        (null("logits"), &|c| c.logits.matrix.ptr = 0),
        (null("labels"), &|c| c.rows.labels = 0),
        (null("weights"), &|c| c.rows.weights = Some(0)),
        (null("loss"), &|c| c.outputs.loss = Some(0)),
        (null("stats"), &|c| c.outputs.stats = 0),
        (null("summary"), &|c| c.outputs.summary = 0),
        (null("the workspace"), &|c| c.scratch.workspace = 0),
        (overlap("loss", "logits"), &|c| {
            c.outputs.loss = Some(c.logits.matrix.ptr + 8)
        }),
        (overlap("lse", "loss"), &|c| c.outputs.lse = c.outputs.loss),
        (overlap("stats", "labels"), &|c| {
            c.outputs.stats = c.rows.labels
        }),
        (overlap("the workspace", "summary"), &|c| {
            c.scratch.workspace = c.outputs.summary
        }),
        (
            Error::Pitch {
                what: "logits",
                pitch: COLS as u64 - 1,
                cols: COLS as u64,
            },
            &|c| c.logits.matrix.pitch = COLS as u64 - 1,
        ),
        (
            Error::Pitch {
                what: "logits",
                pitch: COLS as u64 - 1,
                cols: COLS as u64,
            },
            &|c| {
                (c.logits.matrix.pitch, c.logits.matrix.group_rows) = (COLS as u64 - 1, 2);
                c.logits.matrix.group_pitch = 5000;
            },
        ),
        (
            Error::Length {
                what: "labels",
                expected: 8,
                got: ROWS as u64,
            },
            &|c| (c.logits.matrix.group_rows, c.logits.matrix.group_pitch) = (4, 9999),
        ),
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
        // In place the logits are written, and named first.
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
        ("stats", 4, &|c| c.outputs.stats += 1),
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
        forward(&move |c| {
            c.rows.shard = Some(Shard {
                first_class,
                classes,
            })
        })
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
            stats: good.outputs.stats,
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
        (null("stats"), &|c| c.stats = 0),
        (overlap("dlogits", "logits"), &|c| {
            c.dlogits.ptr = c.logits.matrix.ptr + 4
        }),
        // The groups begin alike, their rows do not.
        (overlap("dlogits", "logits"), &|c| {
            let group_pitch = 3 * COLS as u64;
            (c.logits.matrix.group_rows, c.logits.matrix.group_pitch) = (2, group_pitch);
            c.dlogits = c.logits.matrix;
            c.dlogits.pitch += 1;
        }),
        (overlap("dlogits", "stats"), &|c| {
            c.stats = c.dlogits.ptr + 40
        }),
        (overlap("dlogits", "the normalizer"), &|c| {
            c.normalizer = Some(c.dlogits.ptr)
        }),
        (overlap("dlogits", "dloss"), &|c| {
            c.upstream = upstream(c.dlogits.ptr + 8, -1)
        }),
        (null("dloss"), &|c| c.upstream = upstream(0, 1)),
        (
            Error::TooSmall {
                what: "the number of ranks",
                least: 1,
                got: 0,
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
    // The label 49 is a class, but not one of this rank's, and there is no other.
    forward(&|c| {
        c.logits.cols = 49;
        c.rows.shard = Some(Shard {
            first_class: 0,
            classes: COLS as u64,
        });
    })
    .unwrap();
    assert_eq!(stream.clone_dtoh(&b.loss).unwrap()[1], f32::INFINITY);
    let summary = stream.clone_dtoh(&b.summary).unwrap()[0];
    assert_eq!((summary.kept, summary.bad_row), (4, u64::MAX));
    backward(&|_| {}).unwrap();
    assert_ne!(b.contents(&stream), before);
}

/// Each kind of call, on its own or with those that it needs.
type Call = fn(&mut Buffers, &Device, &Arc<CudaStream>) -> Result<()>;
const CALLS: [Call; 4] = [
    |b, device, stream| {
        b.forward(&op(), device, stream)?;
        b.backward(&op(), device, stream)
    },
    |b, device, stream| {
        b.forward(&op(), device, stream)?;
        b.backward_in_place(&op(), device, stream)
    },
    |b, device, stream| b.with_gradient(&op(), device, stream),
    |b, device, stream| b.as_a_rank(device, stream),
];

/// Capture takes launches alone: an allocation, a synchronisation or a load would end it with an error.
#[test]
fn every_call_can_be_captured_and_replayed() {
    let Gpu { device, .. } = gpu();
    device.preload().unwrap();
    // As cudarc's documentation asks: waits on events from outside would break the capture.
    // SAFETY: everything below runs on one stream.
    unsafe { device.context().disable_event_tracking() };
    let stream = device.context().new_stream().unwrap();
    for call in CALLS {
        let mut b = Buffers::new(&stream);
        let before = b.contents(&stream);
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
        call(&mut b, &device, &stream).unwrap();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream.end_capture(flags).unwrap().expect("launches");
        assert_eq!(b.contents(&stream), before);
        // Not before: the capture is the first use of the kernels.
        let mut expected = Buffers::new(&stream);
        call(&mut expected, &device, &stream).unwrap();
        let expected = expected.contents(&stream);
        for _ in 0..3 {
            b.restore(&stream);
            graph.launch().unwrap();
            assert_eq!(b.contents(&stream), expected);
        }
    }
}

/// A call on one stream, then a copy of one of its buffers on another, and so on. Nobody waits for either: that each call
/// tells cudarc what it has read and written is all that orders them, and the emulator reports what is not ordered.
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
    // What the calls read is overwritten with the same, what they write is read.
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
        &|b| drop(copies.clone_dtoh(&b.stats).unwrap()),
        &|b| drop(copies.clone_dtoh(&b.summary).unwrap()),
    ];
    for call in CALLS {
        let mut b = Buffers::new(&calls);
        call(&mut b, &device, &calls).unwrap();
        let expected = b.contents(&copies);
        for copy in each {
            call(&mut b, &device, &calls).unwrap();
            copy(&mut b);
        }
        b.restore(&copies);
        call(&mut b, &device, &calls).unwrap();
        assert_eq!(b.contents(&copies), expected);
    }
}
