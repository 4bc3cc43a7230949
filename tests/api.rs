//! The safe and the raw API: their errors, that a call with an error writes nothing, graph capture, streams.

#![allow(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;

use half::{bf16, f16};
use xact::cpu;
use xact::cuda::{self, Gradients, Input, Output, Pair, PairMut, Params};
use xact::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use xact::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use xact::raw::{self, Matrix};
use xact::{
    AnyActivation, Device, Dtype, Element, Error, Goldfish, Halves, Order, Queue, Rows, Strategy,
    Xatlu, Xgelu, Xielu, Xsilu,
};
use xact_dev::choose::{Gpu, gpu};
use xact_dev::inputs::Random;
use xact_dev::trials;

fn main() -> ExitCode {
    trials::main(|table| {
        macro_rules! tests {
            ($devices:literal: $($name:ident),+ $(,)?) => {
                $(table.plain(stringify!($name), $devices, $name);)+
            };
        }
        tests![
            1:
                in_place_is_the_same_as_apart,
                wrong_lengths_are_refused_and_nothing_is_written,
                lists_of_scalars_are_counted,
                a_queue_must_have_enough_workspace,
                a_queue_can_be_sent_to_another_thread,
                a_queue_on_the_per_thread_stream_serves_its_own_thread,
                gradients_can_be_left_out,
                scalars_that_are_missing_or_given_twice,
                rows_without_elements_lie_anywhere,
                an_empty_tensor_needs_no_buffer,
                an_op_by_name_is_that_op,
                value_first_halves,
                rows_and_halves_are_the_same_as_dense,
                interleaved_pairs_are_the_same_as_separate,
                gated_in_place_is_the_same_as_apart,
                raw_calls_refuse_what_can_be_seen,
                resident_blocks_of_another_thread,
                raw_backward_refuses_what_can_be_seen,
                raw_gated_calls_refuse_outputs_that_overlap,
                raw_interleaved_calls_refuse_outputs_that_overlap,
                gated_calls_refuse_what_is_no_gate_and_value,
                rows_that_are_not_in_their_buffer_are_refused,
                shapes_that_differ_are_refused,
                forward_and_backward_can_be_captured_and_replayed,
                two_streams_wait_for_each_other,
                errors_say_what_to_do,
        ];
        tests![2: buffers_of_another_device_are_refused];
    })
}

const N: usize = 1000;
/// The value of outputs before a call that must not write.
const BEFORE: f32 = 77.0;

/// The buffers of a forward and a backward, over N elements unless given.
struct Buffers<T: Element> {
    x: CudaSlice<T>,
    dy: CudaSlice<T>,
    out: CudaSlice<T>,
    alpha_p: CudaSlice<f32>,
    alpha_n: CudaSlice<f32>,
    dalpha_p: CudaSlice<f32>,
    dalpha_n: CudaSlice<f32>,
}

impl<T: Element> Buffers<T> {
    fn new(stream: &Arc<CudaStream>) -> Buffers<T> {
        Self::of_len(stream, N)
    }

    fn of_len(stream: &Arc<CudaStream>, len: usize) -> Buffers<T> {
        let upload = |values: Vec<f64>| {
            let values: Vec<T> = values.into_iter().map(T::from_f64).collect();
            stream.clone_htod(&values).unwrap()
        };
        let scalar = |v: f32| stream.clone_htod(&[v]).unwrap();
        Buffers {
            x: upload((0..len).map(|i| (i % N) as f64 / 100.0 - 5.0).collect()),
            dy: upload((0..len).map(|i| (i as f64).sin()).collect()),
            out: upload(vec![f64::from(BEFORE); len]),
            alpha_p: scalar(0.2),
            alpha_n: scalar(-1.0),
            dalpha_p: scalar(BEFORE),
            dalpha_n: scalar(BEFORE),
        }
    }

    fn forward(&mut self, queue: &mut Queue) -> xact::Result<()> {
        let params = Xielu::params(&self.alpha_p, &self.alpha_n);
        cuda::forward(&Xielu::default(), &self.x, params, &mut self.out).launch(queue)
    }

    fn backward(&mut self, queue: &mut Queue) -> xact::Result<()> {
        let params = Xielu::params(&self.alpha_p, &self.alpha_n);
        cuda::backward(&Xielu::default(), &self.x, &self.dy, params, &mut self.out)
            .gradients(Xielu::gradients(&mut self.dalpha_p, &mut self.dalpha_n))
            .launch(queue)
    }

    /// The outputs: out, dalpha_p, dalpha_n.
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

/// A queue with a workspace, and its stream.
fn queue() -> (Queue, Arc<CudaStream>) {
    let queue = gpu().queue().unwrap();
    let stream = queue.stream().clone();
    (queue, stream)
}

fn upload<T: Element>(stream: &Arc<CudaStream>, values: &[f32]) -> CudaSlice<T> {
    let values: Vec<T> = values.iter().map(|&v| T::from_f64(v.into())).collect();
    stream.clone_htod(&values).unwrap()
}

/// The bits of a buffer.
fn bits<T: Element>(stream: &Arc<CudaStream>, buffer: &CudaSlice<T>) -> Vec<u8> {
    let values = stream.clone_dtoh(buffer).unwrap();
    bytemuck::cast_slice(&values).to_vec()
}

fn too_short(what: &'static str, expected: u64, got: u64) -> Error {
    Error::Length {
        what,
        expected,
        got,
    }
}

fn length<T>(what: &'static str, expected: u64, got: u64) -> xact::Result<T> {
    Err(too_short(what, expected, got))
}

/// The buffers are rows of 10 elements.
fn pitch(what: &'static str) -> Error {
    Error::Pitch {
        what,
        pitch: 9,
        cols: 10,
    }
}

fn in_place_is_the_same_as_apart() {
    let (mut queue, stream) = queue();
    let mut b = Buffers::<f16>::new(&stream);
    b.forward(&mut queue).unwrap();
    let (y, ..) = b.results(&stream);
    b.backward(&mut queue).unwrap();
    let (dx, dalpha_p, dalpha_n) = b.results(&stream);

    let xielu = Xielu::default();
    let params = Xielu::params(&b.alpha_p, &b.alpha_n);
    cuda::backward_in_place(&xielu, &b.x, &mut b.dy, params.clone())
        .accumulate(Xielu::gradients(&mut b.dalpha_p, &mut b.dalpha_n))
        .launch(&mut queue)
        .unwrap();
    cuda::forward_in_place(&xielu, &mut b.x, params)
        .launch(&mut queue)
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
    let (mut queue, stream) = queue();
    let mut b = Buffers::<f32>::new(&stream);
    let short = stream.alloc_zeros::<f32>(N - 1).unwrap();
    let long = stream.clone_htod(&[0.1_f32, 0.2]).unwrap();
    let (n, less) = (N as u64, N as u64 - 1);

    let x = std::mem::replace(&mut b.x, short);
    assert_eq!(b.forward(&mut queue), length("y", less, n));
    assert_eq!(b.backward(&mut queue), length("dy", less, n));
    let short = std::mem::replace(&mut b.x, x);
    let dy = std::mem::replace(&mut b.dy, short);
    assert_eq!(b.backward(&mut queue), length("dy", n, less));
    let mut short = std::mem::replace(&mut b.dy, dy);
    let params = Xielu::params(&b.alpha_p, &b.alpha_n);
    let xielu = Xielu::default();
    let call = cuda::backward(&xielu, &b.x, &b.dy, params, &mut b.out).y(&mut short);
    assert_eq!(call.launch(&mut queue), length("y", n, less));
    let alpha_n = std::mem::replace(&mut b.alpha_n, long);
    assert_eq!(b.forward(&mut queue), length("alpha_n", 1, 2));
    assert_eq!(b.backward(&mut queue), length("alpha_n", 1, 2));
    let long = std::mem::replace(&mut b.alpha_n, alpha_n);
    let dalpha_p = std::mem::replace(&mut b.dalpha_p, long);
    assert_eq!(b.backward(&mut queue), length("dalpha_p", 1, 2));
    b.dalpha_p = dalpha_p;
    b.assert_unwritten(&stream);
    b.backward(&mut queue).unwrap();
}

fn lists_of_scalars_are_counted() {
    let (mut queue, stream) = queue();
    let mut b = Buffers::<f32>::new(&stream);
    let scalars: Vec<CudaSlice<f32>> = (0..5)
        .map(|_| stream.clone_htod(&[0.5f32]).unwrap())
        .collect();
    let mut gradients: Vec<CudaSlice<f32>> = (0..5)
        .map(|_| stream.clone_htod(&[BEFORE]).unwrap())
        .collect();
    let xielu = Xielu::default();
    for (given, needed) in [(0, 2), (1, 2), (4, 3), (5, 3)] {
        let params = Params::list(&scalars[..given]);
        let call = cuda::forward(&xielu, &b.x, params.clone(), &mut b.out);
        // The list is one longer than that of any op.
        let got = given.min(4) as u64;
        assert_eq!(call.launch(&mut queue), length("params", needed, got));
        let call = cuda::backward(&xielu, &b.x, &b.dy, params, &mut b.out);
        assert_eq!(call.launch(&mut queue), length("params", needed, got));
    }
    for (params, given, needed) in [
        (2, 0, 2),
        (2, 1, 2),
        (2, 3, 2),
        (3, 1, 2),
        (3, 4, 3),
        (3, 5, 3),
    ] {
        let params = Params::list(&scalars[..params]);
        let call = cuda::backward(&xielu, &b.x, &b.dy, params, &mut b.out)
            .gradients(Gradients::list(&mut gradients[..given]));
        let got = given.min(4) as u64;
        assert_eq!(call.launch(&mut queue), length("dparams", needed, got));
    }
    let unwritten = |buffer| stream.clone_dtoh(buffer).unwrap() == [BEFORE];
    assert!(gradients.iter().all(unwritten));
    b.assert_unwritten(&stream);
    for (params, given) in [(2, 2), (3, 2), (3, 3)] {
        let params = Params::list(&scalars[..params]);
        cuda::backward(&xielu, &b.x, &b.dy, params, &mut b.out)
            .gradients(Gradients::list(&mut gradients[..given]))
            .launch(&mut queue)
            .unwrap();
    }
}

fn a_queue_must_have_enough_workspace() {
    let stream = gpu().stream;
    let mut queue = Queue::new(&stream).unwrap();
    assert_eq!(queue.workspace_bytes(), 0);
    let mut b = Buffers::<f32>::new(&stream);
    // A forward needs no workspace.
    let mut y = stream.clone_htod(&[BEFORE; N]).unwrap();
    let params = Xielu::params(&b.alpha_p, &b.alpha_n);
    let xielu = Xielu::default();
    let call = cuda::forward(&xielu, &b.x, params.clone(), &mut y);
    assert_eq!(call.workspace_bytes(), Ok(0));
    call.launch(&mut queue).unwrap();
    let call = cuda::backward(&xielu, &b.x, &b.dy, params, &mut y)
        .gradients(Xielu::gradients(&mut b.dalpha_p, &mut b.dalpha_n));
    let needed = call.workspace_bytes().unwrap();
    drop(call);
    assert_eq!(needed, 24);
    for got in [0, 8, needed - 1] {
        queue.reserve(got).unwrap();
        assert_eq!(queue.workspace_bytes(), got);
        let refused = b.backward(&mut queue);
        assert_eq!(refused, Err(Error::Workspace { needed, got }));
        b.assert_unwritten(&stream);
        // The error says how much to reserve.
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("24 are needed") && message.contains("reserve"));
    }
    queue.reserve(needed).unwrap();
    // The workspace does not shrink.
    queue.reserve(1).unwrap();
    assert_eq!(queue.workspace_bytes(), needed);
    b.backward(&mut queue).unwrap();
}

fn a_queue_can_be_sent_to_another_thread() {
    fn sent<T: Send + Sync>() {}
    sent::<Queue>();
    sent::<Device>();
    sent::<Error>();
    sent::<AnyActivation>();
    sent::<xact::CrossEntropy>();
    sent::<cuda::goldfish::DeviceGoldfish>();
    sent::<cpu::Forward<'_, Xsilu, bf16>>();
    sent::<cpu::GatedBackward<'_, dyn xact::Gated, f32>>();
    let (mut queue, stream) = queue();
    let mut b = Buffers::<f32>::new(&stream);
    b.backward(&mut queue).unwrap();
    let expected = b.results(&stream);
    let mut b = Buffers::<f32>::new(&stream);
    std::thread::scope(|scope| scope.spawn(|| b.backward(&mut queue)).join().unwrap()).unwrap();
    assert_eq!(b.results(&stream), expected);
}

/// Under the per-thread default stream, the same handle is another stream in each thread.
fn a_queue_on_the_per_thread_stream_serves_its_own_thread() {
    let Gpu { device, .. } = gpu();
    let stream = device.context().per_thread_stream();
    let mut queue = Queue::new(&stream).unwrap();
    queue.reserve(1 << 10).unwrap();
    let mut b = Buffers::<f32>::new(&stream);
    let bytes = queue.workspace_bytes();
    let goldfish = Goldfish::new(Strategy::Hash64 {
        k: 4,
        h: 13,
        seed: 0,
    })
    .unwrap();
    let here = &mut queue;
    let elsewhere = || {
        assert_eq!(here.reserve(1 << 20), Err(Error::WrongThread));
        assert_eq!(here.workspace_bytes(), bytes);
        assert_eq!(goldfish.upload(here).err(), Some(Error::WrongThread));
        b.backward(here)
    };
    let result = std::thread::scope(|scope| scope.spawn(elsewhere).join().unwrap());
    assert_eq!(result, Err(Error::WrongThread));
    b.assert_unwritten(&stream);
    b.backward(&mut queue).unwrap();
    // A queue may be dropped in another thread.
    std::thread::scope(|scope| scope.spawn(|| drop(queue)).join().unwrap());
    assert_ne!(b.results(&stream).1, BEFORE);
}

/// A missing setting is an error, also for gradients. If a setting is made twice, the last one counts.
fn scalars_that_are_missing_or_given_twice() {
    let (mut queue, stream) = queue();
    let mut b = Buffers::<f32>::new(&stream);
    let xielu = Xielu::default();
    for beta in [false, true] {
        let mut params = Params::<Xielu, _>::list([&b.alpha_p]);
        if beta {
            params = params.beta(&b.alpha_n);
        }
        let gradients = Xielu::gradients(&mut b.dalpha_p, &mut b.dalpha_n);
        let result = cuda::backward(&xielu, &b.x, &b.dy, params.clone(), &mut b.out)
            .gradients(gradients)
            .launch(&mut queue);
        let expected = match beta {
            false => length("params", 2, 1),
            true => length("alpha_n", 1, 0),
        };
        assert_eq!(result, expected);
        let result = cuda::forward(&xielu, &b.x, params, &mut b.out).launch(&mut queue);
        assert_eq!(result, expected);
    }
    let none = || Params::list::<CudaSlice<f32>>([]);
    let mut dv = upload::<f32>(&stream, &[BEFORE; N]);
    let any = AnyActivation::from(Xsilu);
    let result = cuda::backward(&any, &b.x, &b.dy, none(), &mut b.out)
        .gradients(Gradients::list([&mut b.dalpha_p]))
        .launch(&mut queue);
    assert_eq!(result, length("params", 1, 0));
    let result = cuda::gated_backward(
        &Xsilu,
        Order::First,
        (&b.x, &b.x),
        &b.dy,
        Params::list::<CudaSlice<f32>>([]),
        (&mut b.out, &mut dv),
    )
    .gradients(Gradients::list([&mut b.dalpha_p]))
    .launch(&mut queue);
    assert_eq!(result, length("params", 1, 0));
    // Gradients with a gap.
    let mut dbeta = upload::<f32>(&stream, &[BEFORE]);
    let beta = upload::<f32>(&stream, &[0.75]);
    let params = Xielu::params(&b.alpha_p, &b.alpha_n).beta(&beta);
    let gradients = Gradients::<Xielu>::list([&mut b.dalpha_p]).dbeta(&mut dbeta);
    let result = cuda::backward(&xielu, &b.x, &b.dy, params.clone(), &mut b.out)
        .gradients(gradients)
        .launch(&mut queue);
    assert_eq!(result, length("dalpha_n", 1, 0));
    b.assert_unwritten(&stream);

    let mut out = upload::<f32>(&stream, &[BEFORE; N]);
    let mut run = |params| {
        cuda::forward(&xielu, &b.x, params, &mut out)
            .launch(&mut queue)
            .unwrap();
        stream.clone_dtoh(&out).unwrap()
    };
    let once = run(params.clone());
    let wrong = upload::<f32>(&stream, &[3.0]);
    let twice = Xielu::params(&b.alpha_p, &b.alpha_n)
        .beta(&wrong)
        .beta(&wrong);
    assert_ne!(run(twice.clone()), once);
    assert_eq!(run(twice.beta(&beta)), once);
}

/// Rows without elements may have any offset and pitch, and any number of rows, on both back ends.
fn rows_without_elements_lie_anywhere() {
    let (mut queue, stream) = queue();
    let b = Buffers::<f32>::new(&stream);
    let params = [0.25_f32];
    for rows in [
        Rows::new(0, 3).offset(usize::MAX),
        Rows::new(3, 0).offset(usize::MAX / 2),
        Rows::new(3, 0).pitch(4),
        Rows::new(usize::MAX, 0).pitch(5),
    ] {
        let mut y = upload::<f32>(&stream, &[BEFORE]);
        let alpha = Xsilu::params(&b.alpha_p);
        cuda::forward(
            &Xsilu,
            Input::rows(&b.x, rows),
            alpha,
            Output::rows(&mut y, rows),
        )
        .launch(&mut queue)
        .unwrap();
        assert_eq!(stream.clone_dtoh(&y).unwrap(), [BEFORE]);
        let (x, mut y) = ([1.0_f32; 2], [BEFORE]);
        let (x, y_rows) = (cpu::Input::rows(&x, rows), cpu::Output::rows(&mut y, rows));
        cpu::forward(&Xsilu, x, &params, y_rows).run().unwrap();
        assert_eq!(y, [BEFORE]);
    }
}

/// Without parameter gradients, dx is the same, and no workspace is needed.
fn gradients_can_be_left_out() {
    let (mut queue, stream) = queue();
    let mut bare = Queue::new(&stream).unwrap();
    let mut b = Buffers::<f32>::new(&stream);
    b.backward(&mut queue).unwrap();
    let (dx, dalpha_p, dalpha_n) = b.results(&stream);
    let mut b = Buffers::<f32>::new(&stream);
    let xielu = Xielu::default();
    let params = Xielu::params(&b.alpha_p, &b.alpha_n);
    let call = cuda::backward(&xielu, &b.x, &b.dy, params, &mut b.out);
    assert_eq!(call.workspace_bytes(), Ok(0));
    call.launch(&mut bare).unwrap();
    assert_eq!(b.results(&stream), (dx, BEFORE, BEFORE));
    // The gradient of an optional parameter may be left out too.
    let (beta, mut dbeta) = (upload(&stream, &[0.5]), upload(&stream, &[BEFORE]));
    for all in [false, true] {
        let params = Xielu::params(&b.alpha_p, &b.alpha_n).beta(&beta);
        let mut gradients = Xielu::gradients(&mut b.dalpha_p, &mut b.dalpha_n);
        if all {
            gradients = gradients.dbeta(&mut dbeta);
        }
        cuda::backward(&xielu, &b.x, &b.dy, params, &mut b.out)
            .gradients(gradients)
            .launch(&mut queue)
            .unwrap();
        let (_, p, n) = b.results(&stream);
        assert_eq!((p, n), (dalpha_p, dalpha_n));
        let dbeta = stream.clone_dtoh(&dbeta).unwrap()[0];
        assert_eq!(dbeta != BEFORE, all);
    }
    let alpha = upload(&stream, &[0.3]);
    let [mut dx, mut dv] = [(); 2].map(|()| upload::<f32>(&stream, &[BEFORE; N]));
    let dxv = (&mut dx, &mut dv);
    let params = Xsilu::params::<f32>(&alpha);
    let call = cuda::gated_backward(&Xsilu, Order::Second, (&b.x, &b.dy), &b.dy, params, dxv);
    assert_eq!(call.workspace_bytes(), Ok(0));
    call.launch(&mut bare).unwrap();
    for gradient in [&dx, &dv] {
        assert!(!stream.clone_dtoh(gradient).unwrap().contains(&BEFORE));
    }
}

fn none<'a>() -> Input<'a, f32> {
    Input::empty()
}

fn out<'a>() -> Output<'a, f32> {
    Output::empty()
}

/// CUDA cannot allocate 0 bytes. The gradients of parameters are empty sums.
fn an_empty_tensor_needs_no_buffer() {
    let (mut queue, stream) = queue();
    let alpha = upload::<f32>(&stream, &[0.3]);
    let mut dalpha = upload::<f32>(&stream, &[BEFORE]);
    let params = || Xsilu::params::<f32>(&alpha);
    cuda::forward(&Xsilu, none(), params(), out())
        .launch(&mut queue)
        .unwrap();
    cuda::forward_in_place(&Xsilu, out(), params())
        .launch(&mut queue)
        .unwrap();
    for (accumulate, expected) in [(true, BEFORE), (false, 0.0)] {
        let call = cuda::backward(&Xsilu, none(), none(), params(), out()).y(out());
        let gradients = Xsilu::gradients(&mut dalpha);
        let call = match accumulate {
            true => call.accumulate(gradients),
            false => call.gradients(gradients),
        };
        call.launch(&mut queue).unwrap();
        assert_eq!(stream.clone_dtoh(&dalpha).unwrap(), [expected]);
    }
    let pair = || Pair::new(none(), none());
    cuda::gated_forward(&Xsilu, Order::First, pair(), params(), out())
        .launch(&mut queue)
        .unwrap();
    let mut dalpha = upload::<f32>(&stream, &[BEFORE]);
    let dxv = PairMut::new(out(), out());
    cuda::gated_backward(&Xsilu, Order::First, pair(), none(), params(), dxv)
        .gradients(Xsilu::gradients(&mut dalpha))
        .launch(&mut queue)
        .unwrap();
    assert_eq!(stream.clone_dtoh(&dalpha).unwrap(), [0.0]);
    // This tensor is empty, whatever the others are.
    let x = upload::<f32>(&stream, &[1.0; 3]);
    let call = cuda::forward(&Xsilu, &x, params(), out());
    assert_eq!(call.launch(&mut queue), length("y", 3, 0));
    let mut y = upload::<f32>(&stream, &[BEFORE; 3]);
    let call = cuda::forward(&Xsilu, none(), params(), &mut y);
    assert_eq!(call.launch(&mut queue), length("y", 0, 3));
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [BEFORE; 3]);
    // On the CPU, it is an empty slice.
    let (empty, mut out, mut sums) = ([0.0f32; 0], [0.0f32; 0], [BEFORE]);
    cpu::backward(&Xsilu, &empty, &empty, &[0.3], &mut out)
        .gradients(&mut sums)
        .run()
        .unwrap();
    assert_eq!(sums, [0.0]);
}

/// Forward and backward of an op that is named by a string, and of its gated forms.
fn an_op_by_name_is_that_op() {
    let (mut queue, stream) = queue();
    let mut expected = Buffers::<bf16>::new(&stream);
    let mut b = Buffers::<bf16>::new(&stream);
    let xielu: AnyActivation = "xielu".parse().unwrap();
    let refused = xielu.as_gated().map(|_| ());
    assert_eq!(refused, Err(Error::NotGated { op: "xielu" }));
    let params = Params::list([&b.alpha_p, &b.alpha_n]);
    expected.forward(&mut queue).unwrap();
    cuda::forward(&xielu, &b.x, params.clone(), &mut b.out)
        .launch(&mut queue)
        .unwrap();
    assert_eq!(bits(&stream, &b.out), bits(&stream, &expected.out));
    expected.backward(&mut queue).unwrap();
    cuda::backward(&xielu, &b.x, &b.dy, params, &mut b.out)
        .gradients(Gradients::list([&mut b.dalpha_p, &mut b.dalpha_n]))
        .launch(&mut queue)
        .unwrap();
    assert_eq!(b.results(&stream), expected.results(&stream));

    let xsilu: AnyActivation = "xsilu".parse().unwrap();
    let xsilu = xsilu.as_gated().unwrap();
    for order in Order::ALL {
        let before = || upload::<bf16>(&stream, &[BEFORE; N]);
        let [mut y, mut dx, mut dv] = [(); 3].map(|()| before());
        let [mut named_y, mut named_dx, mut named_dv] = [(); 3].map(|()| before());
        let (mut dalpha, mut named_dalpha) = (upload(&stream, &[0.0]), upload(&stream, &[0.0]));
        let (xv, dy) = ((&b.x, &b.dy), &b.dy);
        cuda::gated_forward(&Xsilu, order, xv, Xsilu::params(&b.alpha_p), &mut y)
            .launch(&mut queue)
            .unwrap();
        let params = || Params::list([&b.alpha_p]);
        cuda::gated_forward(xsilu, order, xv, params(), &mut named_y)
            .launch(&mut queue)
            .unwrap();
        let dxv = (&mut dx, &mut dv);
        cuda::gated_backward(&Xsilu, order, xv, dy, Xsilu::params(&b.alpha_p), dxv)
            .gradients(Xsilu::gradients(&mut dalpha))
            .launch(&mut queue)
            .unwrap();
        let dxv = (&mut named_dx, &mut named_dv);
        cuda::gated_backward(xsilu, order, xv, dy, params(), dxv)
            .gradients(Gradients::list([&mut named_dalpha]))
            .launch(&mut queue)
            .unwrap();
        for (named, op) in [(&named_y, &y), (&named_dx, &dx), (&named_dv, &dv)] {
            assert_eq!(bits(&stream, named), bits(&stream, op));
        }
        assert_eq!(bits(&stream, &named_dalpha), bits(&stream, &dalpha));
    }
    let unknown = "xrelu".parse::<AnyActivation>();
    assert!(matches!(unknown, Err(Error::UnknownOp { name, .. }) if name == "xrelu"));
}

/// [[3, 1]] is a value and its gate.
fn value_first_halves() {
    let (mut queue, stream) = queue();
    let xv = upload::<f32>(&stream, &[3.0, 1.0]);
    let alpha = upload::<f32>(&stream, &[0.0]);
    let params = || Xsilu::params::<f32>(&alpha);
    let (mut y, mut dxv) = (
        upload::<f32>(&stream, &[0.0]),
        upload::<f32>(&stream, &[0.0; 2]),
    );
    let dy = upload::<f32>(&stream, &[1.0]);
    let pair = || Pair::halves(&xv, 1, Halves::ValueFirst).unwrap();
    cuda::gated_forward(&Xsilu, Order::First, pair(), params(), &mut y)
        .launch(&mut queue)
        .unwrap();
    let gradient = PairMut::halves(&mut dxv, 1, Halves::ValueFirst).unwrap();
    cuda::gated_backward(&Xsilu, Order::First, pair(), &dy, params(), gradient)
        .launch(&mut queue)
        .unwrap();
    let got = [
        stream.clone_dtoh(&y).unwrap(),
        stream.clone_dtoh(&dxv).unwrap(),
    ]
    .concat();
    for (got, expected) in got
        .into_iter()
        .zip([2.193_175_8f32, 0.731_058_6, 0.589_835_8])
    {
        assert!((got - expected).abs() <= 1e-6, "{got}, not {expected}");
    }
}

/// Rows with gaps, and halves in either order, through the safe calls: the bits are those of tensors without gaps, and the
/// memory between the rows is unchanged.
fn rows_and_halves_are_the_same_as_dense() {
    const GAP: usize = 3;
    const OFFSET: usize = 2;
    let (mut queue, stream) = queue();
    let [x, v, dy] = [1, 2, 3].map(|seed| Random(seed).normal::<f32>(ROWS * COLS, 2.0));
    let rows = Rows::new(ROWS, COLS).pitch(COLS + GAP).offset(OFFSET);
    let spread = |values: &[f32]| {
        let gap = [BEFORE; GAP];
        let rows = values.chunks(COLS).flat_map(|row| [row, &gap].concat());
        [BEFORE; OFFSET].into_iter().chain(rows).collect::<Vec<_>>()
    };
    let alpha = upload::<f32>(&stream, &[0.3]);
    let params = || Xgelu::params::<f32>(&alpha);
    let blank = [BEFORE; ROWS * COLS];
    let there = |values: &[f32]| upload::<f32>(&stream, values);
    let (dense_x, dense_v, dense_dy) = (there(&x), there(&v), there(&dy));
    let [mut y, mut dx, mut dv] = [(); 3].map(|()| there(&blank));
    cuda::forward(&Xgelu, &dense_x, params(), &mut y)
        .launch(&mut queue)
        .unwrap();
    cuda::backward(&Xgelu, &dense_x, &dense_dy, params(), &mut dx)
        .launch(&mut queue)
        .unwrap();
    let host = |buffer: &CudaSlice<f32>| stream.clone_dtoh(buffer).unwrap();
    let (x_there, dy_there) = (there(&spread(&x)), there(&spread(&dy)));
    let mut out = there(&spread(&blank));
    cuda::forward(
        &Xgelu,
        Input::rows(&x_there, rows),
        params(),
        Output::rows(&mut out, rows),
    )
    .launch(&mut queue)
    .unwrap();
    assert_eq!(host(&out), spread(&host(&y)));
    let mut in_place = there(&spread(&x));
    cuda::forward_in_place(&Xgelu, Output::rows(&mut in_place, rows), params())
        .launch(&mut queue)
        .unwrap();
    assert_eq!(host(&in_place), spread(&host(&y)));
    let (x_rows, dy_rows) = (Input::rows(&x_there, rows), Input::rows(&dy_there, rows));
    let mut again = there(&blank);
    cuda::backward(
        &Xgelu,
        x_rows,
        dy_rows,
        params(),
        Output::rows(&mut out, rows),
    )
    .y(&mut again)
    .launch(&mut queue)
    .unwrap();
    assert_eq!(host(&out), spread(&host(&dx)));
    assert_eq!(host(&again), host(&y));
    let mut in_place = there(&spread(&dy));
    cuda::backward_in_place(
        &Xgelu,
        &dense_x,
        Output::rows(&mut in_place, rows),
        params(),
    )
    .launch(&mut queue)
    .unwrap();
    assert_eq!(host(&in_place), spread(&host(&dx)));

    for order in Order::ALL {
        let pair = || Pair::new(&dense_x, &dense_v);
        cuda::gated_forward(&Xgelu, order, pair(), params(), &mut y)
            .launch(&mut queue)
            .unwrap();
        let dxv = (&mut dx, &mut dv);
        cuda::gated_backward(&Xgelu, order, pair(), &dense_dy, params(), dxv)
            .launch(&mut queue)
            .unwrap();
        for halves in [Halves::GateFirst, Halves::ValueFirst] {
            let join = |gate: &[f32], value: &[f32]| -> Vec<f32> {
                let rows = gate.chunks(COLS).zip(value.chunks(COLS));
                let rows = rows.flat_map(|(gate, value)| match halves {
                    Halves::GateFirst => [gate, value].concat(),
                    Halves::ValueFirst => [value, gate].concat(),
                });
                rows.collect()
            };
            let xv = there(&join(&x, &v));
            let pair = || Pair::halves(&xv, ROWS, halves).unwrap();
            let mut got = there(&blank);
            cuda::gated_forward(&Xgelu, order, pair(), params(), &mut got)
                .launch(&mut queue)
                .unwrap();
            assert_eq!(host(&got), host(&y));
            let mut dxv = there(&join(&blank, &blank));
            let gradient = PairMut::halves(&mut dxv, ROWS, halves).unwrap();
            let dy_rows = Input::rows(&dy_there, rows);
            cuda::gated_backward(&Xgelu, order, pair(), dy_rows, params(), gradient)
                .launch(&mut queue)
                .unwrap();
            assert_eq!(host(&dxv), join(&host(&dx), &host(&dv)));
        }
    }
}

/// Gate and value that alternate in one tensor, contiguous or of rows with gaps, through the safe calls: the bits are those
/// of separate tensors, in place too, and from one layout to another.
fn interleaved_pairs_are_the_same_as_separate() {
    const COLS: usize = 64;
    let (mut queue, stream) = queue();
    let n = ROWS * COLS;
    let [x, v, dy] = [1, 2, 3].map(|seed| Random(seed).normal::<bf16>(n, 2.0));
    let there = |values: &[bf16]| stream.clone_htod(values).unwrap();
    let host = |buffer: &CudaSlice<bf16>| stream.clone_dtoh(buffer).unwrap();
    let blank = |len| there(&vec![bf16::from_f32(BEFORE); len]);
    let alpha = upload::<f32>(&stream, &[0.3]);
    let params = || Xatlu::params::<f32>(&alpha);
    let (x_there, v_there, dy_there) = (there(&x), there(&v), there(&dy));
    for order in Order::ALL {
        let [mut y, mut dx, mut dv] = [(); 3].map(|()| blank(n));
        let mut dalpha = upload::<f32>(&stream, &[0.0]);
        let pair = || Pair::new(&x_there, &v_there);
        cuda::gated_forward(&Xatlu, order, pair(), params(), &mut y)
            .launch(&mut queue)
            .unwrap();
        let dxv = (&mut dx, &mut dv);
        cuda::gated_backward(&Xatlu, order, pair(), &dy_there, params(), dxv)
            .gradients(Xatlu::gradients(&mut dalpha))
            .launch(&mut queue)
            .unwrap();
        for (first, block) in [
            (Halves::GateFirst, 1),
            (Halves::ValueFirst, 1),
            (Halves::GateFirst, 16),
            (Halves::ValueFirst, 32),
        ] {
            let join = |gate: &[bf16], value: &[bf16]| -> Vec<bf16> {
                let blocks = gate.chunks(block).zip(value.chunks(block));
                let blocks = blocks.flat_map(|(gate, value)| match first {
                    Halves::GateFirst => [gate, value].concat(),
                    Halves::ValueFirst => [value, gate].concat(),
                });
                blocks.collect()
            };
            let xv = there(&join(&x, &v));
            let expected = join(&host(&dx), &host(&dv));
            let interleaved = || Pair::interleaved(&xv, first, block);
            let (mut got, mut again) = (blank(n), blank(n));
            cuda::gated_forward(&Xatlu, order, interleaved(), params(), &mut got)
                .launch(&mut queue)
                .unwrap();
            assert_eq!(host(&got), host(&y));
            let (mut dxv, mut sum) = (blank(2 * n), upload::<f32>(&stream, &[0.0]));
            let gradient = PairMut::interleaved(&mut dxv, first, block);
            cuda::gated_backward(&Xatlu, order, interleaved(), &dy_there, params(), gradient)
                .y(&mut again)
                .gradients(Xatlu::gradients(&mut sum))
                .launch(&mut queue)
                .unwrap();
            assert_eq!((host(&dxv), host(&again)), (expected.clone(), host(&y)));
            let [got, of_separate] = [&sum, &dalpha].map(|sum| stream.clone_dtoh(sum).unwrap()[0]);
            assert!((got - of_separate).abs() < 1e-4, "{got}, {of_separate}");
            // In place, in rows with gaps.
            let gap = [bf16::from_f32(BEFORE); 3];
            let spread = |both: &[bf16]| {
                let rows = both.chunks(2 * COLS).flat_map(|row| [row, &gap].concat());
                rows.collect::<Vec<_>>()
            };
            let mut both = there(&spread(&join(&x, &v)));
            let rows = Rows::new(ROWS, 2 * COLS).pitch(2 * COLS + gap.len());
            let place = PairMut::interleaved(Output::rows(&mut both, rows), first, block);
            cuda::gated_backward_in_place(&Xatlu, order, place, &dy_there, params())
                .launch(&mut queue)
                .unwrap();
            assert_eq!(host(&both), spread(&expected));
            // From one tensor to two, and from two to one.
            let [mut dx_apart, mut dv_apart] = [(); 2].map(|()| blank(n));
            let apart = (&mut dx_apart, &mut dv_apart);
            cuda::gated_backward(&Xatlu, order, interleaved(), &dy_there, params(), apart)
                .launch(&mut queue)
                .unwrap();
            assert_eq!((host(&dx_apart), host(&dv_apart)), (host(&dx), host(&dv)));
            let mut dxv = blank(2 * n);
            let gradient = PairMut::interleaved(&mut dxv, first, block);
            cuda::gated_backward(&Xatlu, order, pair(), &dy_there, params(), gradient)
                .launch(&mut queue)
                .unwrap();
            assert_eq!(host(&dxv), expected);
        }
    }
}

/// Gradients that overwrite gate and value have the same bits as separate ones: for two tensors, and for the halves of one.
fn gated_in_place_is_the_same_as_apart() {
    let (mut queue, stream) = queue();
    let alpha = upload::<f32>(&stream, &[0.3]);
    let params = || Xsilu::params::<f32>(&alpha);
    let [x, v, dy] = [1, 2, 3].map(|seed| Random(seed).normal::<bf16>(ROWS * COLS, 2.0));
    let there = |values: &[bf16]| stream.clone_htod(values).unwrap();
    let dy = there(&dy);
    let before = || upload::<bf16>(&stream, &[BEFORE; ROWS * COLS]);
    for order in Order::ALL {
        let (mut in_place_x, mut in_place_v) = (there(&x), there(&v));
        let [mut dx, mut dv, mut y, mut again] = [(); 4].map(|()| before());
        let (mut dalpha, mut sum) = (upload(&stream, &[0.0]), upload(&stream, &[0.0]));
        let (from, to) = ((&in_place_x, &in_place_v), (&mut dx, &mut dv));
        cuda::gated_backward(&Xsilu, order, from, &dy, params(), to)
            .y(&mut y)
            .gradients(Xsilu::gradients(&mut dalpha))
            .launch(&mut queue)
            .unwrap();
        let pair = (&mut in_place_x, &mut in_place_v);
        cuda::gated_backward_in_place(&Xsilu, order, pair, &dy, params())
            .y(&mut again)
            .gradients(Xsilu::gradients(&mut sum))
            .launch(&mut queue)
            .unwrap();
        for (in_place, apart) in [(&in_place_x, &dx), (&in_place_v, &dv), (&again, &y)] {
            assert_eq!(bits(&stream, in_place), bits(&stream, apart));
        }
        assert_eq!(bits(&stream, &sum), bits(&stream, &dalpha));
        let rows = x.chunks(COLS).zip(v.chunks(COLS));
        let both: Vec<bf16> = rows.flat_map(|(x, v)| [v, x].concat()).collect();
        let (mut both, mut apart) = (there(&both), there(&both));
        let pair = PairMut::halves(&mut both, ROWS, Halves::ValueFirst).unwrap();
        cuda::gated_backward_in_place(&Xsilu, order, pair, &dy, params())
            .launch(&mut queue)
            .unwrap();
        let rows = [&dv, &dx].map(|half| stream.clone_dtoh(half).unwrap());
        let rows = rows[0].chunks(COLS).zip(rows[1].chunks(COLS));
        let expected: Vec<bf16> = rows.flat_map(|(dv, dx)| [dv, dx].concat()).collect();
        stream.memcpy_htod(&expected, &mut apart).unwrap();
        assert_eq!(bits(&stream, &both), bits(&stream, &apart));
    }
    // The error uses the names of the tensors.
    let (mut short, mut whole) = (there(&v[1..]), there(&x));
    let n = (ROWS * COLS) as u64;
    let pair = (&mut whole, &mut short);
    let call = cuda::gated_backward_in_place(&Xsilu, Order::First, pair, &dy, params());
    assert_eq!(call.launch(&mut queue), length("v", n, n - 1));
    assert_eq!(stream.clone_dtoh(&whole).unwrap(), x);
}

/// A raw forward over N f32.
fn raw_forward_call(params: &[raw::CUdeviceptr], x: u64, y: u64) -> raw::Forward<'_> {
    raw::Forward {
        common: raw::Common {
            dtype: Dtype::F32,
            rows: 1,
            cols: N as u64,
            params,
            param_dtype: Dtype::F32,
            blocks: raw::Blocks::All,
        },
        x: Matrix::contiguous(x, N as u64),
        y: Matrix::contiguous(y, N as u64),
    }
}

/// The same with one change.
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
    let mut call = raw_forward_call(&params, x, y);
    change(&mut call, x, y);
    let stream = gpu.stream.cu_stream();
    // SAFETY: the buffers have N elements and live past the next synchronisation. The changes of the tests are errors
    // before a launch.
    unsafe { raw::forward(&gpu.device, stream, &Xielu::default(), &call) }
}

/// Another thread, in which no context is current, queries the number of resident blocks.
fn resident_blocks_of_another_thread() {
    let gpu = gpu();
    let mut b = Buffers::<f32>::new(&gpu.stream);
    // Loads the kernel.
    raw_forward(&gpu, &mut b, |_, _, _| {}).unwrap();
    let expected = gpu.stream.clone_dtoh(&b.out).unwrap();
    gpu.stream.memset_zeros(&mut b.out).unwrap();
    let (x, y) = (
        b.x.device_ptr(&gpu.stream).0,
        b.out.device_ptr(&gpu.stream).0,
    );
    let params = [&b.alpha_p, &b.alpha_n].map(|p| p.device_ptr(&gpu.stream).0);
    let launch = || {
        let mut call = raw_forward_call(&params, x, y);
        call.common.blocks = raw::Blocks::Resident;
        let stream = gpu.stream.cu_stream();
        // SAFETY: the buffers have N elements and live past the download below.
        unsafe { raw::forward(&gpu.device, stream, &Xielu::default(), &call) }
    };
    let launched = std::thread::scope(|scope| scope.spawn(launch).join().expect("no panic"));
    launched.unwrap();
    assert_eq!(gpu.stream.clone_dtoh(&b.out).unwrap(), expected);
}

fn raw_calls_refuse_what_can_be_seen() {
    let gpu = gpu();
    let mut b = Buffers::<f32>::new(&gpu.stream);
    let mut refused = |expected: Error, change: &dyn Fn(&mut raw::Forward<'_>, u64, u64)| {
        assert_eq!(raw_forward(&gpu, &mut b, change), Err(expected));
    };
    refused(null("x"), &|call, _, _| call.x.ptr = 0);
    refused(null("y"), &|call, _, _| call.y.ptr = 0);
    refused(null("alpha_p"), &|call, _, _| call.common.params = &[0, 8]);
    refused(too_short("params", 2, 1), &|call, _, _| {
        call.common.params = &call.common.params[..1];
    });
    refused(overlap("y", "x"), &|call, x, _| call.y.ptr = x + 4);
    refused(overlap("y", "alpha_p"), &|call, _, _| {
        call.y.ptr = call.common.params[0] - 4;
    });
    refused(
        Error::ParamDtype {
            params: "bf16",
            x: "f32",
        },
        &|call, _, _| {
            call.common.param_dtype = Dtype::Bf16;
        },
    );
    refused(pitch("x"), &|call, _, _| {
        (call.common.rows, call.common.cols, call.x.pitch) = (2, 10, 9);
    });
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

/// A change that makes the call wrong, and the expected error.
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
    let needed = raw::workspace_bytes(&Xielu::default(), Dtype::F32, 1, N as u64).unwrap();
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
                blocks: raw::Blocks::All,
            },
            x: row(at.x),
            dy: row(at.dy),
            dx: row(at.dx),
            y: Some(row(at.y)),
            dparams: Some(raw::Dparams {
                out: &at.dparams,
                accumulate: false,
                workspace: at.workspace,
                workspace_bytes: at.workspace_bytes,
            }),
        };
        // SAFETY: the buffers have N elements and live past the next synchronisation. The changes of the tests are errors
        // before a launch.
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
        (too_short("dparams", 2, 1), &|at| at.dparams.truncate(1)),
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
    // If the output is exactly the input, each element is read before it is written.
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
        y: Matrix,
    }
    type Change<'a> = &'a dyn Fn(&mut At);
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
    let bytes = raw::workspace_bytes(&Xsilu, Dtype::F32, ROWS as u64, COLS as u64).unwrap();
    let workspace = stream.alloc_zeros::<u8>(bytes as usize).unwrap();
    let [params, dparams] = [&alpha, &dalpha].map(|buffer| [buffer.device_ptr(&stream).0]);
    let common = raw::Common {
        dtype: Dtype::F32,
        rows: ROWS as u64,
        cols: COLS as u64,
        params: &params,
        param_dtype: Dtype::F32,
        blocks: raw::Blocks::All,
    };
    let dense =
        |buffer: &CudaSlice<f32>| Matrix::contiguous(buffer.device_ptr(&stream).0, COLS as u64);
    let backward = |change: Change<'_>| {
        let ([x, v], [dx, dv]) = (halves(&input), halves(&gradient));
        let (dy, y) = (dense(&dy), dense(&y));
        let mut at = At {
            x,
            v,
            dy,
            dx,
            dv,
            y,
        };
        change(&mut at);
        let pair = |x, v| raw::Pair::Separate { x, v };
        let call = raw::GatedBackward {
            common,
            order: Order::Second,
            xv: pair(at.x, at.v),
            dy: at.dy,
            dxv: pair(at.dx, at.dv),
            y: Some(at.y),
            dparams: Some(raw::Dparams {
                out: &dparams,
                accumulate: false,
                workspace: workspace.device_ptr(&stream).0,
                workspace_bytes: bytes,
            }),
        };
        // SAFETY: as in raw_forward.
        unsafe { raw::gated_backward(&device, stream.cu_stream(), &Xsilu, &call) }
    };
    let cases: &[(Error, Change<'_>)] = &[
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
        (overlap("y", "dv"), &|at| at.y = at.dv),
        (null("v"), &|at| at.v.ptr = 0),
        (null("dv"), &|at| at.dv.ptr = 0),
        (pitch("dv"), &|at| at.dv.pitch = 9),
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
            xv: raw::Pair::Separate { x, v },
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
    // The last column of v is followed by the next row of x.
    assert_eq!(forward(beside), Err(overlap("y", "x")));
    forward(x).unwrap();
}

/// An output of an interleaved pair is exactly the input of the same blocks, or apart from all inputs.
fn raw_interleaved_calls_refuse_outputs_that_overlap() {
    const COLS: u64 = 16;
    let Gpu { device, stream, .. } = gpu();
    let n = ROWS * COLS as usize;
    let there = |value: f32, len| stream.clone_htod(&vec![value; len]).unwrap();
    let (both, dy, alpha) = (there(1.0, 2 * n), there(1.0, n), there(0.3, 1));
    let (gradient, y) = (there(BEFORE, 2 * n), there(BEFORE, n));
    let at = |buffer: &CudaSlice<f32>| buffer.device_ptr(&stream).0;
    let params = [at(&alpha)];
    let pair = |ptr, pitch, block| raw::Pair::Interleaved {
        xv: Matrix { ptr, pitch },
        order: Halves::GateFirst,
        block,
    };
    let half = |ptr| Matrix {
        ptr,
        pitch: 2 * COLS,
    };
    let backward = |xv, dxv, y: Matrix| {
        let call = raw::GatedBackward {
            common: raw::Common {
                dtype: Dtype::F32,
                rows: ROWS as u64,
                cols: COLS,
                params: &params,
                param_dtype: Dtype::F32,
                blocks: raw::Blocks::All,
            },
            order: Order::Second,
            xv,
            dy: Matrix::contiguous(at(&dy), COLS),
            dxv,
            y: Some(y),
            dparams: None,
        };
        // SAFETY: as in raw_forward.
        unsafe { raw::gated_backward(&device, stream.cu_stream(), &Xsilu, &call) }
    };
    let xv = |block| pair(at(&both), 2 * COLS, block);
    let dxv = |block| pair(at(&gradient), 2 * COLS, block);
    let (dense_y, dense_dy) = (
        Matrix::contiguous(at(&y), COLS),
        Matrix::contiguous(at(&dy), COLS),
    );
    let separate = raw::Pair::Separate {
        x: half(at(&both)),
        v: half(at(&both) + 4 * COLS),
    };
    let refused = |got, expected: Error| assert_eq!(got, Err(expected));
    refused(backward(xv(1), xv(16), dense_y), overlap("dx", "x"));
    refused(backward(xv(16), separate, dense_y), overlap("dx", "x"));
    refused(backward(separate, xv(1), dense_y), overlap("dx", "x"));
    refused(
        backward(xv(1), pair(at(&both) + 4, 2 * COLS, 1), dense_y),
        overlap("dx", "x"),
    );
    refused(
        backward(xv(1), pair(at(&dy), 2 * COLS, 1), dense_y),
        overlap("dx", "dy"),
    );
    refused(backward(xv(1), dxv(1), half(at(&both))), overlap("y", "x"));
    refused(
        backward(xv(1), dxv(1), half(at(&gradient))),
        overlap("y", "dx"),
    );
    refused(backward(xv(1), pair(0, 2 * COLS, 1), dense_y), null("dx"));
    refused(
        backward(pair(at(&both), 2 * COLS - 1, 1), dxv(1), dense_y),
        Error::Pitch {
            what: "x",
            pitch: 2 * COLS - 1,
            cols: 2 * COLS,
        },
    );
    for block in [0, 2, 12, 32, 1 << 40] {
        refused(
            backward(xv(block), dxv(1), dense_y),
            Error::Block { block, cols: COLS },
        );
    }
    for (buffer, len) in [(&gradient, 2 * n), (&y, n)] {
        assert_eq!(stream.clone_dtoh(buffer).unwrap(), vec![BEFORE; len]);
    }
    backward(xv(16), dxv(1), dense_dy).unwrap();
    backward(xv(16), xv(16), dense_y).unwrap();
}

fn gated_calls_refuse_what_is_no_gate_and_value() {
    let (mut queue, stream) = queue();
    let floats = |len: usize| stream.clone_htod(&vec![1_f32; len]).unwrap();
    let (x, alpha, mut dalpha) = (floats(2 * ROWS * COLS), floats(1), floats(1));
    let before = |len| stream.clone_htod(&vec![BEFORE; len]).unwrap();

    // An odd width, and a width that is too large.
    let whole = floats(ROWS * 7);
    for (rows, len) in [(ROWS, 28), (3, 28)] {
        for order in [Halves::GateFirst, Halves::ValueFirst] {
            assert_eq!(
                Pair::halves(&whole, rows, order).err(),
                Some(Error::Halves {
                    len,
                    rows: rows as u64
                })
            );
        }
    }
    let n = (ROWS * COLS) as u64;
    let params = || Xsilu::params::<f32>(&alpha);
    let mut y = before(ROWS * COLS);
    let mut forward = |v: &CudaSlice<f32>, y: &mut CudaSlice<f32>| {
        let gate = Input::rows(&x, Rows::new(ROWS, COLS).pitch(2 * COLS));
        cuda::gated_forward(&Xsilu, Order::First, (gate, v), params(), y).launch(&mut queue)
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
    // This is not a closure, because the gradient would have to live as long as its borrows.
    macro_rules! backward {
        ($gradient:expr) => {{
            let xv = Pair::halves(&x, ROWS, Halves::GateFirst).unwrap();
            cuda::gated_backward(&Xsilu, Order::Second, xv, &dy, params(), $gradient)
                .gradients(Xsilu::gradients(&mut dalpha))
                .launch(&mut queue)
        }};
    }
    let mut odd = before(ROWS * 7);
    assert_eq!(
        PairMut::halves(&mut odd, ROWS, Halves::GateFirst).err(),
        Some(Error::Halves {
            len: 28,
            rows: ROWS as u64
        })
    );
    let mut narrow = before(2 * ROWS * (COLS - 1));
    let gradient = PairMut::halves(&mut narrow, ROWS, Halves::GateFirst).unwrap();
    assert_eq!(
        backward!(gradient),
        Err(Error::Shape {
            what: "dx",
            expected: [4, 10],
            got: [4, 9]
        })
    );
    let (mut dx, mut dv) = (before(ROWS * COLS), before(ROWS * COLS - 1));
    assert_eq!(backward!((&mut dx, &mut dv)), length("dv", n, n - 1));
    let mut both = before(2 * ROWS * COLS);
    let gradient = PairMut::halves(&mut both, ROWS, Halves::GateFirst).unwrap();
    backward!(gradient).unwrap();
    for unwritten in [&odd, &narrow, &dx, &dv] {
        let values = stream.clone_dtoh(unwritten).unwrap();
        assert!(values.iter().all(|&v| v == BEFORE));
    }
}

fn rows_that_are_not_in_their_buffer_are_refused() {
    const PITCH: usize = 16;
    const LEN: usize = (ROWS - 1) * PITCH + COLS;
    let (mut queue, stream) = queue();
    let x = stream.clone_htod(&[1_f32; LEN]).unwrap();
    let mut y = stream.clone_htod(&[BEFORE; LEN]).unwrap();
    let alpha = stream.clone_htod(&[0.3_f32]).unwrap();
    let fits = Rows::new(ROWS, COLS).pitch(PITCH);
    let mut forward = |of_x: Rows, of_y: Rows| {
        let (x, y_rows) = (Input::rows(&x, of_x), Output::rows(&mut y, of_y));
        let result = cuda::forward(&Xsilu, x, Xsilu::params(&alpha), y_rows).launch(&mut queue);
        (result, stream.clone_dtoh(&y).unwrap())
    };
    let len = LEN as u64;
    let pitch = |what| Err(pitch(what));
    let narrow = fits.pitch(COLS - 1);
    let late = fits.offset(1);
    let wide = fits.pitch(PITCH + 1);
    let endless = fits.pitch(usize::MAX);
    let fewer = Rows::new(ROWS - 1, COLS).pitch(PITCH);
    let of_fewer = Error::Shape {
        what: "y",
        expected: [4, 10],
        got: [3, 10],
    };
    let grouped = Rows::new(ROWS, COLS).groups(2, 2 * PITCH);
    let cases = [
        (narrow, fits, pitch("x")),
        (fits, narrow, pitch("y")),
        (late, fits, length("x", len + 1, len)),
        (fits, late, length("y", len + 1, len)),
        (wide, fits, length("x", len + 3, len)),
        (fits, wide, length("y", len + 3, len)),
        (fits, endless, length("y", u64::MAX, len)),
        (fits, fewer, Err(of_fewer)),
        (grouped, fits, Err(Error::Groups { what: "x" })),
        (fits, grouped, Err(Error::Groups { what: "y" })),
    ];
    for (of_x, of_y, expected) in cases {
        let (result, y) = forward(of_x, of_y);
        assert_eq!(result, expected);
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

/// 3 × 4 and 4 × 3 have the same number of elements.
fn shapes_that_differ_are_refused() {
    let (mut queue, stream) = queue();
    let x = upload::<f32>(&stream, &[1.0; 12]);
    let mut y = upload::<f32>(&stream, &[BEFORE; 12]);
    let alpha = upload::<f32>(&stream, &[0.3]);
    let (wide, tall) = (Rows::new(3, 4), Rows::new(4, 3));
    let shape = |what, expected, got| {
        Err(Error::Shape {
            what,
            expected,
            got,
        })
    };
    let xv = (Input::rows(&x, wide), Input::rows(&x, tall));
    let params = || Xsilu::params::<f32>(&alpha);
    let call = cuda::gated_forward(&Xsilu, Order::First, xv, params(), &mut y);
    let refused = call.launch(&mut queue);
    assert_eq!(refused, shape("v", [3, 4], [4, 3]));
    let message = refused.unwrap_err().to_string();
    assert_eq!(message, "v is 4 × 3, but the others are 3 × 4");
    let (from, to) = (Input::rows(&x, tall), Output::rows(&mut y, wide));
    let call = cuda::forward(&Xsilu, from, params(), to);
    assert_eq!(call.launch(&mut queue), shape("y", [4, 3], [3, 4]));
    let to = Output::rows(&mut y, wide);
    let call = cuda::backward(&Xsilu, &x, Input::rows(&x, tall), params(), to);
    assert_eq!(call.launch(&mut queue), shape("dx", [4, 3], [3, 4]));
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [BEFORE; 12]);
}

fn forward_and_backward_can_be_captured_and_replayed() {
    let Gpu { device, .. } = gpu();
    device.preload().unwrap();
    // cudarc's documentation asks for this: waits on events from outside would break the capture.
    // SAFETY: everything below runs on one stream.
    unsafe { device.context().disable_event_tracking() };
    let stream = device.context().new_stream().unwrap();
    let mut queue = Queue::new(&stream).unwrap();
    queue.reserve(1 << 13).unwrap();
    // The second has 300 chunks, so that two blocks add up the sums of each parameter and count themselves.
    for len in [N, 300 * 2048] {
        let mut expected = Buffers::<f32>::of_len(&stream, len);
        expected.backward(&mut queue).unwrap();
        let expected = expected.results(&stream);

        let mut b = Buffers::<f32>::of_len(&stream, len);
        stream.synchronize().unwrap();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).unwrap();
        b.forward(&mut queue).unwrap();
        b.backward(&mut queue).unwrap();
        let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        let graph = stream
            .end_capture(flags)
            .unwrap()
            .expect("a graph with launches");
        b.assert_unwritten(&stream);
        for _ in 0..2 {
            graph.launch().unwrap();
            assert!(b.results(&stream) == expected, "{len} elements");
            for scalar in [&mut b.dalpha_p, &mut b.dalpha_n] {
                stream.memcpy_htod(&[BEFORE], scalar).unwrap();
            }
        }
    }
}

/// Calls alternate with copies of their buffers on another stream, without synchronisation. The order is only determined by
/// what each call tells cudarc about its reads and writes, and the emulator reports accesses without an order.
fn two_streams_wait_for_each_other() {
    let Gpu { device, .. } = gpu();
    let [calls, copies] = [(); 2].map(|()| device.context().new_stream().unwrap());
    let mut queue = Queue::new(&calls).unwrap();
    queue.reserve(1 << 10).unwrap();
    let mut b = Buffers::<f32>::new(&calls);
    b.backward(&mut queue).unwrap();
    let expected = b.results(&copies);
    let (x, dy) = (
        copies.clone_dtoh(&b.x).unwrap(),
        copies.clone_dtoh(&b.dy).unwrap(),
    );
    // The buffers that the calls read are overwritten with the same values, and those that they write are read.
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
        b.forward(&mut queue).unwrap();
        copy(&mut b);
        b.backward(&mut queue).unwrap();
        copy(&mut b);
    }
    assert_eq!(b.results(&copies), expected);
}

fn buffers_of_another_device_are_refused() {
    let (mut queue, stream) = queue();
    let other = Device::new(1).unwrap();
    let mut b = Buffers::<f32>::new(&stream);
    let their_stream = other.context().new_stream().unwrap();
    let mut their_queue = Queue::new(&their_stream).unwrap();
    their_queue.reserve(1 << 10).unwrap();
    let wrong = |what| Err(Error::WrongContext { what });
    assert_eq!(b.forward(&mut their_queue), wrong("x"));
    assert_eq!(b.backward(&mut their_queue), wrong("x"));
    b.assert_unwritten(&stream);
    let mut theirs = Buffers::<f32>::new(&their_stream);
    // Each of the other buffers separately.
    macro_rules! refused {
        ($($field:ident $what:literal: $($call:ident),+;)*) => {$({
            std::mem::swap(&mut b.$field, &mut theirs.$field);
            $(assert_eq!(b.$call(&mut queue), wrong($what));)+
            std::mem::swap(&mut b.$field, &mut theirs.$field);
        })*};
    }
    refused! {
        x "x": forward, backward;
        dy "dy": backward;
        alpha_p "alpha_p": forward, backward;
        alpha_n "alpha_n": forward, backward;
        dalpha_p "dalpha_p": backward;
        dalpha_n "dalpha_n": backward;
    }
    std::mem::swap(&mut b.out, &mut theirs.out);
    assert_eq!(b.forward(&mut queue), wrong("y"));
    assert_eq!(b.backward(&mut queue), wrong("dx"));
    std::mem::swap(&mut b.out, &mut theirs.out);
    b.assert_unwritten(&stream);
    theirs.assert_unwritten(&their_stream);
    theirs.forward(&mut their_queue).unwrap();
    b.forward(&mut queue).unwrap();
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
        why: "invalid ELF header".into(),
    }
    .to_string();
    for word in [
        "libcuda.so",
        "invalid ELF header",
        "--gpus all",
        "CPU backend",
    ] {
        assert!(text.contains(word), "{text}");
    }
}
