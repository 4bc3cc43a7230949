//! Devices and contexts: a call keeps the thread's current context, and can be captured.

use std::ffi::c_void;
use std::ptr;

use xact::cudarc::driver::CudaContext;
use xact::cudarc::driver::result::ctx;
use xact::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::*;

/// The buffers of a training step on one stream: an activation, a mask, the loss and the gradients.
struct Step {
    op: xact_activation,
    loss: xact_cross_entropy,
    activation: xact_activation_args,
    mask: xact_goldfish_args,
    losses: xact_cross_entropy_args,
    decision: Box<xact_decision>,
    params: Box<[*const c_void; 1]>,
    dparams: Box<[*mut f32; 1]>,
    buffers: Vec<Buffer>,
}

const ROWS: usize = 40;
const COLS: usize = 33;

impl Step {
    fn new(backend: &Backend) -> Step {
        let len = ROWS * COLS;
        let tensor = |seed| backend.put(&elements::<f32>(noise(len, seed)));
        let buffers = vec![
            tensor(1),
            tensor(2),
            tensor(3),
            backend.put(&[0.25_f32]),
            backend.put(&[0.0_f32]),
            backend.put(&(0..ROWS as i32).map(|i| i % 7).collect::<Vec<_>>()),
            backend.put(&[0.0_f32; ROWS]),
            backend.workspace(72),
            backend.workspace(1 << 16),
            backend.put(&[7_u8; ROWS]),
        ];
        let strategy = xact_goldfish_strategy {
            kind: XACT_STRATEGY_HASH64,
            k: 3,
            h: 2,
            ..sized()
        };
        // The handle lives as long as the process.
        let goldfish = goldfish::create(&strategy);
        let decision = Box::new(xact_decision {
            goldfish,
            hash_ids: buffers[5].ptr(),
            id_type: XACT_ID_I32,
            ..sized()
        });
        let params = Box::new([buffers[3].ptr::<c_void>().cast_const()]);
        let dparams = Box::new([buffers[4].ptr::<f32>()]);
        let mut activation_args = xact_activation_args {
            rows: ROWS as u64,
            cols: COLS as u64,
            dtype: XACT_DTYPE_F32,
            params: params.as_ptr(),
            param_count: 1,
            dparams: dparams.as_ptr(),
            dparam_count: 1,
            workspace: buffers[8].ptr(),
            workspace_bytes: 1 << 16,
            ..sized()
        };
        // y are the logits. Their gradients overwrite them, and are the dy of the activation.
        activation_args.x.ptr = buffers[0].ptr();
        activation_args.y.ptr = buffers[1].ptr();
        activation_args.dy.ptr = buffers[1].ptr();
        activation_args.dx.ptr = buffers[2].ptr();
        let mask = xact_goldfish_args {
            labels: ROWS as u64,
            decision: &*decision,
            keep: buffers[9].ptr(),
            ..sized()
        };
        let mut losses = xact_cross_entropy_args {
            rows: ROWS as u64,
            cols: COLS as u64,
            dtype: XACT_DTYPE_F32,
            label_type: XACT_ID_I32,
            labels: buffers[5].ptr(),
            decision: &*decision,
            loss: buffers[6].ptr(),
            summary: buffers[7].ptr(),
            workspace: buffers[8].ptr(),
            workspace_bytes: 1 << 16,
            ..sized()
        };
        losses.logits.ptr = buffers[1].ptr();
        Step {
            op: activation("xgelu"),
            loss: cross_entropy(),
            activation: activation_args,
            mask,
            losses,
            decision,
            params,
            dparams,
            buffers,
        }
    }

    fn run(&self, backend: &Backend) {
        ok(backend.forward(&self.op, &self.activation));
        ok(backend.mask(&self.mask));
        ok(backend.loss(Loss::WithGradient, &self.loss, &self.losses));
        let mut backward = self.activation;
        backward.y.ptr = ptr::null_mut();
        ok(backend.backward(&self.op, &backward));
    }

    fn results(&self) -> (Vec<f32>, Vec<f32>, Vec<f32>, Vec<u8>) {
        assert!(!self.params[0].is_null() && !self.dparams[0].is_null());
        assert!(!self.decision.goldfish.is_null());
        (
            self.buffers[2].get(ROWS * COLS),
            self.buffers[4].get(1),
            self.buffers[6].get(ROWS),
            self.buffers[9].get(ROWS),
        )
    }
}

#[test]
fn a_step_can_be_captured_and_replayed() {
    let backend = Backend::device();
    let expected = Step::new(&backend);
    expected.run(&backend);
    let expected = expected.results();
    assert!(expected.3.contains(&0) && expected.3.contains(&1));
    let step = Step::new(&backend);
    let before = step.results();
    let stream = &backend.stream().unwrap().stream;
    stream.synchronize().unwrap();
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    step.run(&backend);
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("launches");
    assert_eq!(step.results(), before, "a capture runs nothing");
    for _ in 0..2 {
        graph.launch().unwrap();
        assert_eq!(step.results(), expected);
    }
}

#[test]
fn a_null_stream_is_the_default_one() {
    let backend = Backend::device();
    let expected = Step::new(&backend);
    expected.run(&backend);
    let step = Step::new(&backend);
    let Stream { handle, stream } = backend.stream().unwrap();
    // Neither stream waits for the other.
    stream.synchronize().unwrap();
    ok(unsafe { xact_activation_forward(*handle, ptr::null_mut(), &step.op, &step.activation) });
    stream.context().synchronize().unwrap();
    ok(backend.mask(&step.mask));
    ok(backend.loss(Loss::WithGradient, &step.loss, &step.losses));
    assert_eq!(step.results().2, expected.results().2);
}

/// The address of the current context; 0 if there is none.
fn current() -> usize {
    ctx::get_current().unwrap().map_or(0, |c| c.addr())
}

#[test]
fn the_current_context_is_what_it_was() {
    let backend = Backend::device();
    let step = Step::new(&backend);
    let other = CudaContext::new(1).unwrap();
    let mut bad = step.activation;
    bad.x.ptr = ptr::null_mut();
    let calls = || {
        step.run(&backend);
        assert_eq!(backend.forward(&step.op, &bad), XACT_ERROR_NULL);
        let handle = backend.stream().unwrap().handle;
        let mut again = ptr::null_mut();
        unsafe {
            ok(xact_device_preload(handle, c"xielu".as_ptr()));
            ok(xact_device_open(2, &mut again));
            ok(xact_device_close(again));
            assert_eq!(xact_device_open(99, &mut again), XACT_ERROR_DRIVER);
            assert_eq!(xact_device_open(-1, &mut again), XACT_ERROR_DRIVER);
        }
    };
    other.bind_to_thread().unwrap();
    let before = current();
    calls();
    assert_eq!(current(), before);
    // If no context was current, none is afterwards.
    std::thread::scope(|scope| {
        let none = scope.spawn(|| {
            assert_eq!(current(), 0);
            let handle = backend.stream().unwrap().handle as usize;
            let handle: *const xact_device = ptr::with_exposed_provenance(handle);
            ok(unsafe { xact_device_preload(handle, ptr::null()) });
            assert_eq!(current(), 0);
        });
        none.join().unwrap();
    });
}

// SAFETY: threads only read a shared backend.
unsafe impl Sync for Backend {}

#[test]
fn the_device_of_the_current_context() {
    let backend = Backend::device();
    std::thread::spawn(|| {
        let mut device = ptr::null_mut();
        let status = unsafe { xact_device_open_current(&mut device) };
        assert_eq!(status, XACT_ERROR_WRONG_CONTEXT, "{}", last_error());
        assert!(device.is_null());
        let context = CudaContext::new(0).unwrap();
        context.bind_to_thread().unwrap();
        let before = current();
        ok(unsafe { xact_device_open_current(&mut device) });
        ok(unsafe { xact_device_preload(device, c"xsilu".as_ptr()) });
        ok(unsafe { xact_device_close(device) });
        assert_eq!(current(), before);
    })
    .join()
    .unwrap();
    // The backend still works.
    Step::new(&backend).run(&backend);
}

#[test]
fn devices_refuse_what_can_be_seen() {
    let backend = Backend::device();
    ok(xact_kernels_built());
    ok(xact_cuda_available());
    let handle = backend.stream().unwrap().handle;
    unsafe {
        let status = xact_device_preload(handle, c"relu".as_ptr());
        assert_eq!(status, XACT_ERROR_UNKNOWN_OP);
        assert!(last_error().contains("relu"));
        for name in [c"cross_entropy", c"goldfish", c"xatlu"] {
            ok(xact_device_preload(handle, name.as_ptr()));
        }
        assert_eq!(
            xact_device_preload(ptr::null(), ptr::null()),
            XACT_ERROR_NULL
        );
        assert_eq!(xact_device_open(0, ptr::null_mut()), XACT_ERROR_NULL);
        assert_eq!(xact_device_open_current(ptr::null_mut()), XACT_ERROR_NULL);
        ok(xact_device_close(ptr::null_mut()));
        let mut bytes = 0;
        let op = activation("xielu");
        let status = xact_activation_workspace_bytes(&op, 8, 1, 1, &mut bytes);
        assert_eq!(status, XACT_ERROR_ENUM);
        let status = xact_activation_workspace_bytes(&op, 1, u64::MAX, 9, &mut bytes);
        assert_eq!(status, XACT_ERROR_TOO_LARGE);
        let status = xact_activation_workspace_bytes(&op, 1, 1, 1, ptr::null_mut());
        assert_eq!(status, XACT_ERROR_NULL);
        assert_eq!(bytes, 0);
    }
}
