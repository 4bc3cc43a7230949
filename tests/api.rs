//! The safe and the raw API: what they refuse, that a refusal writes nothing, graph capture, streams.

#![allow(unsafe_code)]

mod support;

use std::process::ExitCode;
use std::sync::Arc;

use half::f16;
use libtest_mimic::{Arguments, Trial};
use support::choose::{Choice, Gpu, open, open_for_tests};
use xact::activation::xielu::{Gradients, Params};
use xact::activation::{
    Backward, BackwardInPlace, Forward, ForwardInPlace, GateOutput, GatedBackward, GatedForward,
    Input, Output, ParamGradients, Rows, expanded,
};
use xact::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use xact::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use xact::raw::{self, Matrix};
use xact::{Activation, Device, Dtype, Element, Error, Gated, Order, Workspace, Xielu, Xsilu};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Err(code) = open_for_tests() {
        return code;
    }
    let second_device = Device::new(1).is_ok();
    let test = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    macro_rules! tests {
        ($($name:ident),+ $(,)?) => { vec![$(test(stringify!($name), $name)),+] };
    }
    let mut trials = tests![
        in_place_is_the_same_as_apart,
        wrong_lengths_are_refused_and_nothing_is_written,
        a_parameter_of_a_third_type_is_refused,
        a_workspace_serves_its_own_stream_and_must_be_large_enough,
        a_workspace_of_the_per_thread_stream_serves_its_own_thread,
        raw_calls_refuse_what_can_be_seen,
        raw_backward_refuses_what_can_be_seen,
        raw_gated_calls_refuse_outputs_that_overlap,
        gated_calls_refuse_what_is_no_gate_and_value,
        rows_that_are_not_in_their_buffer_are_refused,
        forward_and_backward_can_be_captured_and_replayed,
        two_streams_wait_for_each_other,
        errors_say_what_to_do,
    ];
    trials.push(
        test(
            "streams_of_another_device_are_refused",
            streams_of_another_device_are_refused,
        )
        .with_ignored_flag(!second_device),
    );
    support::trials::run(&arguments, trials)
}

fn gpu() -> Gpu {
    open(Choice::from_env().unwrap()).unwrap()
}

const N: usize = 1000;
/// What outputs hold before a call that must not write.
const BEFORE: f32 = 77.0;

/// The buffers of a forward and a backward over N elements.
struct Buffers<T: Element> {
    x: CudaSlice<T>,
    dy: CudaSlice<T>,
    out: CudaSlice<T>,
    alpha_p: CudaSlice<f32>,
    alpha_n: CudaSlice<f32>,
    dalpha_p: CudaSlice<f32>,
    dalpha_n: CudaSlice<f32>,
    workspace: Workspace,
}

impl<T: Element> Buffers<T> {
    fn new(stream: &Arc<CudaStream>) -> Buffers<T> {
        let upload = |values: Vec<f64>| {
            let values: Vec<T> = values.into_iter().map(T::from_f64).collect();
            stream.clone_htod(&values).unwrap()
        };
        let scalar = |v: f32| stream.clone_htod(&[v]).unwrap();
        let bytes = Xielu::workspace_bytes(T::DTYPE, N as u64).unwrap();
        Buffers {
            x: upload((0..N).map(|i| i as f64 / 100.0 - 5.0).collect()),
            dy: upload((0..N).map(|i| (i as f64).sin()).collect()),
            out: upload(vec![f64::from(BEFORE); N]),
            alpha_p: scalar(0.2),
            alpha_n: scalar(-1.0),
            dalpha_p: scalar(BEFORE),
            dalpha_n: scalar(BEFORE),
            workspace: Workspace::new(stream, bytes).unwrap(),
        }
    }

    fn forward(&mut self, device: &Device, stream: &Arc<CudaStream>) -> xact::Result<()> {
        let params = Params {
            alpha_p: &self.alpha_p,
            alpha_n: &self.alpha_n,
            beta: None,
        };
        Xielu::default().forward(
            device,
            stream,
            Forward {
                x: (&self.x).into(),
                params,
                y: (&mut self.out).into(),
            },
        )
    }

    fn backward(&mut self, device: &Device, stream: &Arc<CudaStream>) -> xact::Result<()> {
        let call = Backward {
            x: (&self.x).into(),
            dy: (&self.dy).into(),
            dx: (&mut self.out).into(),
            y: None,
            params: Params {
                alpha_p: &self.alpha_p,
                alpha_n: &self.alpha_n,
                beta: None,
            },
            dparams: ParamGradients {
                out: Gradients {
                    dalpha_p: &mut self.dalpha_p,
                    dalpha_n: &mut self.dalpha_n,
                    dbeta: None,
                },
                accumulate: false,
                workspace: &mut self.workspace,
            },
        };
        Xielu::default().backward(device, stream, call)
    }

    /// out, dalpha_p, dalpha_n.
    fn results(&self, stream: &Arc<CudaStream>) -> (Vec<f64>, f32, f32) {
        let out = stream.clone_dtoh(&self.out).unwrap();
        let scalar = |buffer| stream.clone_dtoh(buffer).unwrap()[0];
        (
            out.iter().map(|v| v.to_f64()).collect(),
            scalar(&self.dalpha_p),
            scalar(&self.dalpha_n),
        )
    }

    fn assert_unwritten(&self, stream: &Arc<CudaStream>) {
        let (out, dalpha_p, dalpha_n) = self.results(stream);
        let before = f64::from(BEFORE);
        assert!(out.iter().all(|&v| v == before));
        assert_eq!((dalpha_p, dalpha_n), (BEFORE, BEFORE));
    }
}

fn in_place_is_the_same_as_apart() {
    let Gpu { device, stream, .. } = gpu();
    let mut b = Buffers::<f16>::new(&stream);
    b.forward(&device, &stream).unwrap();
    let (y, ..) = b.results(&stream);
    b.backward(&device, &stream).unwrap();
    let (dx, dalpha_p, dalpha_n) = b.results(&stream);

    let params = || Params {
        alpha_p: &b.alpha_p,
        alpha_n: &b.alpha_n,
        beta: None,
    };
    let call = BackwardInPlace {
        x: (&b.x).into(),
        dy: (&mut b.dy).into(),
        params: params(),
        dparams: ParamGradients {
            out: Gradients {
                dalpha_p: &mut b.dalpha_p,
                dalpha_n: &mut b.dalpha_n,
                dbeta: None,
            },
            accumulate: true,
            workspace: &mut b.workspace,
        },
    };
    Xielu::default()
        .backward_in_place(&device, &stream, call)
        .unwrap();
    let call = ForwardInPlace {
        x: (&mut b.x).into(),
        params: params(),
    };
    Xielu::default()
        .forward_in_place(&device, &stream, call)
        .unwrap();
    let download = |buffer| -> Vec<f64> {
        stream
            .clone_dtoh(buffer)
            .unwrap()
            .iter()
            .map(|v: &f16| v.to_f64())
            .collect()
    };
    assert_eq!(download(&b.x), y);
    assert_eq!(download(&b.dy), dx);
    let (_, p, n) = b.results(&stream);
    assert_eq!(
        (p, n),
        (dalpha_p + dalpha_p, dalpha_n + dalpha_n),
        "accumulated"
    );
}

fn wrong_lengths_are_refused_and_nothing_is_written() {
    let Gpu { device, stream, .. } = gpu();
    let mut b = Buffers::<f32>::new(&stream);
    let short = stream.alloc_zeros::<f32>(N - 1).unwrap();
    let long = stream.clone_htod(&[0.1_f32, 0.2]).unwrap();
    let length = |what, expected, got| {
        Err(Error::Length {
            what,
            expected,
            got,
        })
    };
    let (n, less) = (N as u64, N as u64 - 1);

    let x = std::mem::replace(&mut b.x, short);
    assert_eq!(b.forward(&device, &stream), length("y", less, n));
    assert_eq!(b.backward(&device, &stream), length("dy", less, n));
    let short = std::mem::replace(&mut b.x, x);
    let dy = std::mem::replace(&mut b.dy, short);
    assert_eq!(b.backward(&device, &stream), length("dy", n, less));
    let _ = std::mem::replace(&mut b.dy, dy);
    let alpha_n = std::mem::replace(&mut b.alpha_n, long);
    assert_eq!(b.forward(&device, &stream), length("alpha_n", 1, 2));
    assert_eq!(b.backward(&device, &stream), length("alpha_n", 1, 2));
    let long = std::mem::replace(&mut b.alpha_n, alpha_n);
    let dalpha_p = std::mem::replace(&mut b.dalpha_p, long);
    assert_eq!(b.backward(&device, &stream), length("dalpha_p", 1, 2));
    b.dalpha_p = dalpha_p;
    b.assert_unwritten(&stream);
    b.backward(&device, &stream).unwrap();
}

fn a_parameter_of_a_third_type_is_refused() {
    let Gpu { device, stream, .. } = gpu();
    let b = Buffers::<f32>::new(&stream);
    let a = stream.clone_htod(&[f16::from_f32(0.2)]).unwrap();
    let mut y = stream.clone_htod(&[BEFORE; N]).unwrap();
    let params = Params {
        alpha_p: &a,
        alpha_n: &a,
        beta: None,
    };
    let result = Xielu::default().forward(
        &device,
        &stream,
        Forward {
            x: (&b.x).into(),
            params,
            y: (&mut y).into(),
        },
    );
    assert_eq!(
        result,
        Err(Error::ParamDtype {
            params: "f16",
            x: "f32"
        })
    );
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [BEFORE; N]);
}

fn a_workspace_serves_its_own_stream_and_must_be_large_enough() {
    let Gpu { device, stream, .. } = gpu();
    let mut b = Buffers::<f32>::new(&stream);
    let other = device.context().new_stream().unwrap();
    assert_eq!(b.backward(&device, &other), Err(Error::WrongStream));
    b.workspace = Workspace::new(&stream, 8).unwrap();
    assert_eq!(
        b.backward(&device, &stream),
        Err(Error::Workspace { needed: 24, got: 8 })
    );
    b.assert_unwritten(&stream);
}

/// Under the per-thread default stream, the same handle is another stream in each thread.
fn a_workspace_of_the_per_thread_stream_serves_its_own_thread() {
    let Gpu { device, .. } = gpu();
    let stream = device.context().per_thread_stream();
    let mut b = Buffers::<f32>::new(&stream);
    b.backward(&device, &stream).unwrap();
    let result =
        std::thread::scope(|scope| scope.spawn(|| b.backward(&device, &stream)).join().unwrap());
    assert_eq!(result, Err(Error::WrongStream));
}

/// A raw forward over N f32, with one thing changed.
fn raw_forward(
    gpu: &Gpu,
    b: &mut Buffers<f32>,
    change: impl FnOnce(&mut raw::Forward<'_>, u64, u64),
) -> xact::Result<()> {
    let (x, _reads_x) = b.x.device_ptr(&gpu.stream);
    let (y, _writes_y) = b.out.device_ptr_mut(&gpu.stream);
    let (p, _reads_p) = b.alpha_p.device_ptr(&gpu.stream);
    let (n, _reads_n) = b.alpha_n.device_ptr(&gpu.stream);
    let params = [p, n];
    let mut call = raw::Forward {
        common: raw::Common {
            dtype: Dtype::F32,
            rows: 1,
            cols: N as u64,
            params: &params,
            param_dtype: Dtype::F32,
            max_blocks: None,
        },
        x: Matrix::contiguous(x, N as u64),
        y: Matrix::contiguous(y, N as u64),
    };
    change(&mut call, x, y);
    // SAFETY: the buffers have N elements and live past the next synchronisation; the changes of the
    // tests are refused before a launch.
    unsafe {
        raw::forward(
            &gpu.device,
            gpu.stream.cu_stream(),
            &Xielu::default(),
            &call,
        )
    }
}

fn raw_calls_refuse_what_can_be_seen() {
    let gpu = gpu();
    let mut b = Buffers::<f32>::new(&gpu.stream);
    let mut refused = |expected: Error, change: &dyn Fn(&mut raw::Forward<'_>, u64, u64)| {
        assert_eq!(raw_forward(&gpu, &mut b, change), Err(expected));
    };
    refused(Error::Null { what: "x" }, &|call, _, _| call.x.ptr = 0);
    refused(Error::Null { what: "y" }, &|call, _, _| call.y.ptr = 0);
    refused(Error::Null { what: "alpha_p" }, &|call, _, _| {
        call.common.params = &[0, 8]
    });
    refused(
        Error::Length {
            what: "params",
            expected: 2,
            got: 1,
        },
        &|call, _, _| {
            call.common.params = &call.common.params[..1];
        },
    );
    refused(
        Error::Overlap {
            output: "y",
            other: "x",
        },
        &|call, x, _| call.y.ptr = x + 4,
    );
    refused(
        Error::Overlap {
            output: "y",
            other: "alpha_p",
        },
        &|call, _, _| {
            call.y.ptr = call.common.params[0] - 4;
        },
    );
    refused(
        Error::ParamDtype {
            params: "bf16",
            x: "f32",
        },
        &|call, _, _| {
            call.common.param_dtype = Dtype::Bf16;
        },
    );
    refused(
        Error::Pitch {
            what: "x",
            pitch: 9,
            cols: 10,
        },
        &|call, _, _| {
            (call.common.rows, call.common.cols, call.x.pitch) = (2, 10, 9);
        },
    );
    refused(
        Error::TooLarge {
            rows: u64::MAX,
            cols: 2,
        },
        &|call, _, _| {
            (call.common.rows, call.common.cols) = (u64::MAX, 2);
        },
    );
    let misaligned = raw_forward(&gpu, &mut b, |call, _, _| call.x.ptr += 2);
    assert!(matches!(
        misaligned,
        Err(Error::Misaligned {
            what: "x",
            alignment: 4,
            ..
        })
    ));
    b.assert_unwritten(&gpu.stream);
    raw_forward(&gpu, &mut b, |_, _, _| {}).unwrap();
}

/// The addresses of a raw backward.
#[derive(Clone)]
struct At {
    x: u64,
    dy: u64,
    dx: u64,
    y: u64,
    params: [u64; 2],
    dparams: Vec<u64>,
    workspace: u64,
    workspace_bytes: u64,
}

/// A change of a raw call.
type Change<'a, C> = &'a dyn Fn(&mut C);

/// One that makes it wrong, and what it is refused with.
type Refused<'a, C> = (Error, Change<'a, C>);

fn null(what: &'static str) -> Error {
    Error::Null { what }
}

fn overlap(output: &'static str, other: &'static str) -> Error {
    Error::Overlap { output, other }
}

fn raw_backward_refuses_what_can_be_seen() {
    const FILL: u8 = 0xab;
    let Gpu { device, stream, .. } = gpu();
    let mut b = Buffers::<f32>::new(&stream);
    let needed = raw::workspace_bytes::<Xielu>(Dtype::F32, 1, N as u64).unwrap();
    let mut workspace = stream.clone_htod(&vec![FILL; needed as usize]).unwrap();
    let mut y = stream.clone_htod(&[BEFORE; N]).unwrap();
    let contents = |b: &Buffers<f32>, y: &CudaSlice<f32>, workspace: &CudaSlice<u8>| {
        let floats = [
            &b.x,
            &b.dy,
            &b.out,
            y,
            &b.alpha_p,
            &b.alpha_n,
            &b.dalpha_p,
            &b.dalpha_n,
        ];
        let floats = floats.map(|buffer: &CudaSlice<f32>| stream.clone_dtoh(buffer).unwrap());
        (floats, stream.clone_dtoh(workspace).unwrap())
    };
    let before = contents(&b, &y, &workspace);
    let at = At {
        x: b.x.device_ptr(&stream).0,
        dy: b.dy.device_ptr(&stream).0,
        dx: b.out.device_ptr_mut(&stream).0,
        y: y.device_ptr_mut(&stream).0,
        params: [
            b.alpha_p.device_ptr(&stream).0,
            b.alpha_n.device_ptr(&stream).0,
        ],
        dparams: vec![
            b.dalpha_p.device_ptr_mut(&stream).0,
            b.dalpha_n.device_ptr_mut(&stream).0,
        ],
        workspace: workspace.device_ptr_mut(&stream).0,
        workspace_bytes: needed,
    };
    let call = |change: Change<'_, At>| {
        let mut at = at.clone();
        change(&mut at);
        let row = |ptr| Matrix::contiguous(ptr, N as u64);
        let call = raw::Backward {
            common: raw::Common {
                dtype: Dtype::F32,
                rows: 1,
                cols: N as u64,
                params: &at.params,
                param_dtype: Dtype::F32,
                max_blocks: None,
            },
            x: row(at.x),
            dy: row(at.dy),
            dx: row(at.dx),
            y: Some(row(at.y)),
            dparams: raw::Dparams {
                out: &at.dparams,
                accumulate: false,
                workspace: at.workspace,
                workspace_bytes: at.workspace_bytes,
            },
        };
        // SAFETY: the buffers have N elements and live past the next synchronisation; the changes of the
        // tests are refused before a launch.
        unsafe { raw::backward(&device, stream.cu_stream(), &Xielu::default(), &call) }
    };
    let cases: &[Refused<'_, At>] = &[
        (null("x"), &|at| at.x = 0),
        (null("dy"), &|at| at.dy = 0),
        (null("dx"), &|at| at.dx = 0),
        (null("y"), &|at| at.y = 0),
        (null("alpha_n"), &|at| at.params[1] = 0),
        (null("dalpha_p"), &|at| at.dparams[0] = 0),
        (null("dalpha_n"), &|at| at.dparams[1] = 0),
        (null("the workspace"), &|at| at.workspace = 0),
        (overlap("dx", "x"), &|at| at.dx = at.x + 4),
        (overlap("dx", "dy"), &|at| at.dx = at.dy - 4),
        (overlap("dx", "alpha_n"), &|at| at.dx = at.params[1]),
        (overlap("y", "x"), &|at| at.y = at.x - 8),
        (overlap("y", "dx"), &|at| at.y = at.dx),
        (overlap("dalpha_p", "dx"), &|at| at.dparams[0] = at.dx + 40),
        (overlap("dalpha_n", "x"), &|at| at.dparams[1] = at.x),
        (overlap("dalpha_n", "y"), &|at| at.dparams[1] = at.y + 4),
        (overlap("dalpha_n", "alpha_n"), &|at| {
            at.dparams[1] = at.params[1]
        }),
        (overlap("dalpha_n", "dalpha_p"), &|at| {
            at.dparams[1] = at.dparams[0]
        }),
        (overlap("the workspace", "dalpha_p"), &|at| {
            at.dparams[0] = at.workspace + 8
        }),
        (overlap("the workspace", "x"), &|at| at.workspace = at.x + 8),
        (overlap("the workspace", "dx"), &|at| at.workspace = at.dx),
        (overlap("the workspace", "y"), &|at| {
            at.workspace = at.y + 4 * (N as u64 - 2)
        }),
        (
            Error::Workspace {
                needed,
                got: needed - 1,
            },
            &|at| at.workspace_bytes -= 1,
        ),
        (
            Error::Length {
                what: "dparams",
                expected: 2,
                got: 1,
            },
            &|at| at.dparams.truncate(1),
        ),
    ];
    for (expected, change) in cases {
        assert_eq!(call(*change).as_ref(), Err(expected));
    }
    let misaligned: &[(&str, u64, Change<'_, At>)] = &[
        ("dx", 4, &|at| at.dx += 1),
        ("dalpha_p", 4, &|at| at.dparams[0] += 2),
        ("the workspace", 8, &|at| at.workspace += 4),
    ];
    for &(name, bytes, change) in misaligned {
        let result = call(change);
        let Err(Error::Misaligned {
            what, alignment, ..
        }) = result
        else {
            panic!("{name}: {result:?}");
        };
        assert_eq!((what, alignment), (name, bytes));
    }
    assert!(
        contents(&b, &y, &workspace) == before,
        "a refused call wrote"
    );
    call(&|_| {}).unwrap();
    assert!(contents(&b, &y, &workspace) != before);
    // Over an input exactly, each element is read before it is written.
    call(&|at| (at.dx, at.y) = (at.dy, at.x)).unwrap();
}

/// `[ROWS, 2·COLS]` tensors of a gated call.
const ROWS: usize = 4;
const COLS: usize = 10;

fn raw_gated_calls_refuse_outputs_that_overlap() {
    struct At {
        x: Matrix,
        v: Matrix,
        dy: Matrix,
        dx: Matrix,
        dv: Matrix,
        y: Option<Matrix>,
    }
    let Gpu { device, stream, .. } = gpu();
    let halves = |buffer: &CudaSlice<f32>| {
        let (ptr, pitch) = (buffer.device_ptr(&stream).0, 2 * COLS as u64);
        [0, COLS as u64].map(|cols| Matrix {
            ptr: ptr + 4 * cols,
            pitch,
        })
    };
    let input = stream.clone_htod(&[1_f32; 2 * ROWS * COLS]).unwrap();
    let gradient = stream.clone_htod(&[BEFORE; 2 * ROWS * COLS]).unwrap();
    let (dy, y) = (
        stream.clone_htod(&[1_f32; ROWS * COLS]).unwrap(),
        stream.clone_htod(&[BEFORE; ROWS * COLS]).unwrap(),
    );
    let (alpha, dalpha) = (
        stream.clone_htod(&[0.3_f32]).unwrap(),
        stream.clone_htod(&[BEFORE]).unwrap(),
    );
    let bytes = raw::workspace_bytes::<Xsilu>(Dtype::F32, ROWS as u64, COLS as u64).unwrap();
    let workspace = stream.alloc_zeros::<u8>(bytes as usize).unwrap();
    let [params, dparams] = [&alpha, &dalpha].map(|buffer| [buffer.device_ptr(&stream).0]);
    let common = raw::Common {
        dtype: Dtype::F32,
        rows: ROWS as u64,
        cols: COLS as u64,
        params: &params,
        param_dtype: Dtype::F32,
        max_blocks: None,
    };
    let dense =
        |buffer: &CudaSlice<f32>| Matrix::contiguous(buffer.device_ptr(&stream).0, COLS as u64);
    let backward = |change: Change<'_, At>| {
        let ([x, v], [dx, dv]) = (halves(&input), halves(&gradient));
        let (dy, y) = (dense(&dy), Some(dense(&y)));
        let mut at = At {
            x,
            v,
            dy,
            dx,
            dv,
            y,
        };
        change(&mut at);
        let At {
            x,
            v,
            dy,
            dx,
            dv,
            y,
        } = at;
        let call = raw::GatedBackward {
            common,
            order: Order::Second,
            x,
            v,
            dy,
            dx,
            dv,
            y,
            dparams: raw::Dparams {
                out: &dparams,
                accumulate: false,
                workspace: workspace.device_ptr(&stream).0,
                workspace_bytes: bytes,
            },
        };
        // SAFETY: as in raw_forward.
        unsafe { raw::gated_backward(&device, stream.cu_stream(), &Xsilu, &call) }
    };
    let cases: &[Refused<'_, At>] = &[
        (overlap("dv", "dx"), &|at| at.dv = at.dx),
        (overlap("dv", "dx"), &|at| at.dv.ptr -= 4),
        (overlap("dv", "dx"), &|at| at.dv.ptr += 4),
        (overlap("dx", "v"), &|at| {
            (at.x, at.dx.ptr) = (at.dy, at.v.ptr + 4);
        }),
        (overlap("dv", "dy"), &|at| {
            at.dv = Matrix {
                ptr: at.dy.ptr + 4,
                ..at.dy
            }
        }),
        (overlap("y", "dv"), &|at| at.y = Some(at.dv)),
        (null("v"), &|at| at.v.ptr = 0),
        (null("dv"), &|at| at.dv.ptr = 0),
        (
            Error::Pitch {
                what: "dv",
                pitch: 9,
                cols: 10,
            },
            &|at| at.dv.pitch = 9,
        ),
    ];
    for (expected, change) in cases {
        assert_eq!(backward(*change).as_ref(), Err(expected));
    }
    for (buffer, len) in [
        (&gradient, 2 * ROWS * COLS),
        (&y, ROWS * COLS),
        (&dalpha, 1),
    ] {
        assert_eq!(stream.clone_dtoh(buffer).unwrap(), vec![BEFORE; len]);
    }
    backward(&|_| {}).unwrap();
    let forward = |y| {
        let [x, v] = halves(&input);
        let call = raw::GatedForward {
            common,
            order: Order::First,
            x,
            v,
            y,
        };
        // SAFETY: as in raw_forward.
        unsafe { raw::gated_forward(&device, stream.cu_stream(), &Xsilu, &call) }
    };
    let [x, v] = halves(&input);
    let beside = Matrix {
        ptr: v.ptr + 4,
        ..v
    };
    // Also the last column of v is followed by x's next row.
    assert_eq!(forward(beside), Err(overlap("y", "x")));
    forward(x).unwrap();
}

fn gated_calls_refuse_what_is_no_gate_and_value() {
    let Gpu { device, stream, .. } = gpu();
    let floats = |len: usize| stream.clone_htod(&vec![1_f32; len]).unwrap();
    let (x, alpha, mut dalpha) = (floats(2 * ROWS * COLS), floats(1), floats(1));
    let mut workspace = Workspace::new(&stream, 4096).unwrap();
    let before = |len| stream.clone_htod(&vec![BEFORE; len]).unwrap();

    // An odd width, and a width that is no number.
    let whole = floats(ROWS * 7);
    for (rows, len) in [(ROWS, 28), (3, 28)] {
        assert_eq!(
            Input::halves(&whole, rows).err(),
            Some(Error::Halves {
                len,
                rows: rows as u64
            })
        );
    }
    let length = |what, expected, got| {
        Err(Error::Length {
            what,
            expected,
            got,
        })
    };
    let n = (ROWS * COLS) as u64;
    let mut y = before(ROWS * COLS);
    let forward = |v: &CudaSlice<f32>, y: &mut CudaSlice<f32>| {
        let [gate, _] = Input::halves(&x, ROWS).unwrap();
        let call = GatedForward {
            x: gate,
            v: v.into(),
            params: expanded::Params { alpha: &alpha },
            y: y.into(),
        };
        Xsilu.gated_forward(&device, &stream, Order::First, call)
    };
    assert_eq!(
        forward(&floats(ROWS * COLS - 1), &mut y),
        length("v", n, n - 1)
    );
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [BEFORE; ROWS * COLS]);
    let mut longer = before(ROWS * COLS + 1);
    assert_eq!(
        forward(&floats(ROWS * COLS), &mut longer),
        length("y", n, n + 1)
    );
    assert_eq!(
        stream.clone_dtoh(&longer).unwrap(),
        [BEFORE; ROWS * COLS + 1]
    );
    forward(&floats(ROWS * COLS), &mut y).unwrap();

    let dy = floats(ROWS * COLS);
    // Not a closure: the gradient would have to live as long as what the closure borrows.
    macro_rules! backward {
        ($gradient:expr) => {{
            let [x, v] = Input::halves(&x, ROWS).unwrap();
            let call = GatedBackward {
                x,
                v,
                dy: (&dy).into(),
                gradient: $gradient,
                y: None,
                params: expanded::Params { alpha: &alpha },
                dparams: ParamGradients {
                    out: expanded::Gradients {
                        dalpha: &mut dalpha,
                    },
                    accumulate: false,
                    workspace: &mut workspace,
                },
            };
            Xsilu.gated_backward(&device, &stream, Order::Second, call)
        }};
    }
    let mut odd = before(ROWS * 7);
    let gradient = GateOutput::Halves {
        buffer: &mut odd,
        rows: ROWS,
    };
    assert_eq!(
        backward!(gradient),
        Err(Error::Halves {
            len: 28,
            rows: ROWS as u64
        })
    );
    let mut narrow = before(2 * ROWS * (COLS - 1));
    let gradient = GateOutput::Halves {
        buffer: &mut narrow,
        rows: ROWS,
    };
    assert_eq!(backward!(gradient), length("dx", n, n - ROWS as u64));
    let (mut dx, mut dv) = (before(ROWS * COLS), before(ROWS * COLS - 1));
    let gradient = GateOutput::Separate {
        dx: (&mut dx).into(),
        dv: (&mut dv).into(),
    };
    assert_eq!(backward!(gradient), length("dv", n, n - 1));
    let mut both = before(2 * ROWS * COLS);
    let gradient = GateOutput::Halves {
        buffer: &mut both,
        rows: ROWS,
    };
    backward!(gradient).unwrap();
    for unwritten in [&odd, &narrow, &dx, &dv] {
        let values = stream.clone_dtoh(unwritten).unwrap();
        assert!(values.iter().all(|&v| v == BEFORE));
    }
}

fn rows_that_are_not_in_their_buffer_are_refused() {
    const PITCH: usize = 16;
    const LEN: usize = (ROWS - 1) * PITCH + COLS;
    let Gpu { device, stream, .. } = gpu();
    let x = stream.clone_htod(&[1_f32; LEN]).unwrap();
    let mut y = stream.clone_htod(&[BEFORE; LEN]).unwrap();
    let alpha = stream.clone_htod(&[0.3_f32]).unwrap();
    let fits = Rows {
        offset: 0,
        rows: ROWS,
        cols: COLS,
        pitch: PITCH,
    };
    let mut forward = |of_x: Rows, of_y: Rows| {
        let call = Forward {
            x: Input::rows(&x, of_x),
            params: expanded::Params { alpha: &alpha },
            y: Output::rows(&mut y, of_y),
        };
        let result = Xsilu.forward(&device, &stream, call);
        (result, stream.clone_dtoh(&y).unwrap())
    };
    let (len, n) = (LEN as u64, (ROWS * COLS) as u64);
    let length = |what, expected, got| Error::Length {
        what,
        expected,
        got,
    };
    let pitch = |what| Error::Pitch {
        what,
        pitch: 9,
        cols: 10,
    };
    let narrow = Rows {
        pitch: COLS - 1,
        ..fits
    };
    let late = Rows { offset: 1, ..fits };
    let wide = Rows {
        pitch: PITCH + 1,
        ..fits
    };
    let endless = Rows {
        pitch: usize::MAX,
        ..fits
    };
    let fewer = Rows {
        rows: ROWS - 1,
        ..fits
    };
    let cases = [
        (narrow, fits, pitch("x")),
        (fits, narrow, pitch("y")),
        (late, fits, length("x", len + 1, len)),
        (fits, late, length("y", len + 1, len)),
        (wide, fits, length("x", len + 3, len)),
        (fits, wide, length("y", len + 3, len)),
        (fits, endless, length("y", u64::MAX, len)),
        (fits, fewer, length("y", n, n - 10)),
    ];
    for (of_x, of_y, expected) in cases {
        let (result, y) = forward(of_x, of_y);
        assert_eq!(result, Err(expected));
        assert_eq!(y, [BEFORE; LEN]);
    }
    let (result, y) = forward(fits, fits);
    result.unwrap();
    for (i, &v) in y.iter().enumerate() {
        assert_eq!(
            v == BEFORE,
            i % PITCH >= COLS,
            "only the rows are written: {i}"
        );
    }
}

fn forward_and_backward_can_be_captured_and_replayed() {
    let Gpu { device, .. } = gpu();
    device.preload().unwrap();
    // As cudarc's documentation asks: waits on events from outside would break the capture.
    // SAFETY: everything below runs on one stream.
    unsafe { device.context().disable_event_tracking() };
    let stream = device.context().new_stream().unwrap();
    let mut expected = Buffers::<f32>::new(&stream);
    expected.backward(&device, &stream).unwrap();
    let expected = expected.results(&stream);

    let mut b = Buffers::<f32>::new(&stream);
    stream.synchronize().unwrap();
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    b.forward(&device, &stream).unwrap();
    b.backward(&device, &stream).unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream
        .end_capture(flags)
        .unwrap()
        .expect("a graph with launches");
    b.assert_unwritten(&stream);
    for _ in 0..2 {
        graph.launch().unwrap();
        assert_eq!(b.results(&stream), expected);
    }
}

/// A call on one stream, then a copy of one of its buffers on another, and so on. Nobody waits for either: that each call
/// tells cudarc what it has read and written is all that orders them, and the emulator reports what is not ordered.
fn two_streams_wait_for_each_other() {
    let Gpu { device, .. } = gpu();
    let [calls, copies] = [(); 2].map(|()| device.context().new_stream().unwrap());
    let mut b = Buffers::<f32>::new(&calls);
    b.backward(&device, &calls).unwrap();
    let expected = b.results(&copies);
    let (x, dy) = (
        copies.clone_dtoh(&b.x).unwrap(),
        copies.clone_dtoh(&b.dy).unwrap(),
    );
    // What the calls read is overwritten with the same, what they write is read.
    type Copy<'a> = &'a dyn Fn(&mut Buffers<f32>);
    let each: [Copy; 7] = [
        &|b| copies.memcpy_htod(&x, &mut b.x).unwrap(),
        &|b| copies.memcpy_htod(&dy, &mut b.dy).unwrap(),
        &|b| copies.memcpy_htod(&[0.2], &mut b.alpha_p).unwrap(),
        &|b| copies.memcpy_htod(&[-1.0], &mut b.alpha_n).unwrap(),
        &|b| drop(copies.clone_dtoh(&b.out).unwrap()),
        &|b| drop(copies.clone_dtoh(&b.dalpha_p).unwrap()),
        &|b| drop(copies.clone_dtoh(&b.dalpha_n).unwrap()),
    ];
    for copy in each {
        b.forward(&device, &calls).unwrap();
        copy(&mut b);
        b.backward(&device, &calls).unwrap();
        copy(&mut b);
    }
    assert_eq!(b.results(&copies), expected);
}

fn streams_of_another_device_are_refused() {
    let Gpu { device, stream, .. } = gpu();
    let other = Device::new(1).unwrap();
    let mut b = Buffers::<f32>::new(&stream);
    assert_eq!(
        b.forward(&other, &stream),
        Err(Error::WrongContext { what: "the stream" })
    );
    let their_stream = other.context().new_stream().unwrap();
    assert_eq!(
        b.forward(&other, &their_stream),
        Err(Error::WrongContext { what: "x" })
    );
    b.assert_unwritten(&stream);
    let mut theirs = Buffers::<f32>::new(&their_stream);
    theirs.forward(&other, &their_stream).unwrap();
    b.forward(&device, &stream).unwrap();
    assert_eq!(
        theirs.results(&their_stream).0,
        b.results(&stream).0,
        "the same bits on both models"
    );
}

fn errors_say_what_to_do() {
    let text = Error::DriverTooOld {
        ptx: "7.0",
        driver: "10.2".into(),
    }
    .to_string();
    assert!(text.contains("10.2") && text.contains("7.0") && text.contains("update the driver"));
    let text = Error::NoDriver {
        tried: "libcuda.so".into(),
    }
    .to_string();
    assert!(text.contains("libcuda.so") && text.contains("CPU reference"));
}
