//! The safe and the raw API: what they refuse, that a refusal writes nothing, graph capture, streams.

#![allow(unsafe_code)]

mod support;

use std::process::ExitCode;
use std::sync::Arc;

use half::f16;
use libtest_mimic::{Arguments, Trial};
use support::choose::{Choice, Gpu, open};
use xact::activation::xielu::{Gradients, Params};
use xact::activation::{Backward, BackwardInPlace, Forward, ForwardInPlace, ParamGradients};
use xact::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use xact::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use xact::raw::{self, Matrix};
use xact::{Activation, Device, Dtype, Element, Error, Workspace, Xielu};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let gpu = match Choice::from_env().and_then(open) {
        Ok(gpu) => gpu,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    eprintln!("device: {}", gpu.name);
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
        forward_and_backward_can_be_captured_and_replayed,
        errors_say_what_to_do,
    ];
    trials.push(
        test(
            "streams_of_another_device_are_refused",
            streams_of_another_device_are_refused,
        )
        .with_ignored_flag(!second_device),
    );
    libtest_mimic::run(&arguments, trials).exit_code()
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
