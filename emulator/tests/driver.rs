//! The driver calls: modules, memory, streams, events, graphs, and their errors.
#![allow(clippy::undocumented_unsafe_blocks)] // Launches: the emulator survives any argument.

mod common;

use std::sync::Arc;

use common::{config, device, function, module};
use cuda_emulator::{Schedule, Settings, device_names, install, record, with_settings};
use cudarc::driver::sys::{self, CUresult, CUstreamCaptureMode, CUstreamCaptureStatus};
use cudarc::driver::{
    CudaContext, CudaStream, DevicePtr, DriverError, LaunchConfig, PushKernelArg, result,
};
use cudarc::nvrtc::Ptx;

/// p[i] += 1 for all threads.
const INCREMENT: &str = ".reg .b32 %r<4>; .reg .b64 %rd<4>; ld.param.u64 %rd1, [p]; mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x; mad.lo.u32 %r1, %r1, %r2, %r3; mad.wide.u32 %rd1, %r1, 4, %rd1;
    ld.global.u32 %r2, [%rd1]; add.u32 %r2, %r2, 1; st.global.u32 [%rd1], %r2;";

fn increment() -> String {
    module("", ".param .u64 p", INCREMENT)
}

fn error<T>(r: Result<T, DriverError>) -> CUresult {
    r.err().map_or(CUresult::CUDA_SUCCESS, |e| e.0)
}

#[test]
fn devices() {
    install().unwrap();
    assert_eq!(CudaContext::device_count().unwrap(), 5);
    assert!(CudaContext::new(5).is_err());
    for (i, (name, compute, sms, shared)) in [
        ("H100", (9, 0), 132, 227 << 10),
        ("A100", (8, 0), 108, 163 << 10),
        ("H100", (9, 0), 2, 227 << 10),
        ("H200", (9, 0), 132, 227 << 10),
        ("B200", (10, 0), 148, 227 << 10),
    ]
    .into_iter()
    .enumerate()
    {
        let ctx = CudaContext::new(i).unwrap();
        assert!(ctx.name().unwrap().contains(name) && ctx.name().unwrap().ends_with("(emulated)"));
        assert_eq!(device_names().nth(i), Some(ctx.name().unwrap().as_str()));
        assert_eq!(ctx.compute_capability().unwrap(), compute);
        use sys::CUdevice_attribute_enum::*;
        assert_eq!(
            ctx.attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
                .unwrap(),
            sms
        );
        assert_eq!(
            ctx.attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
                .unwrap(),
            shared
        );
        assert!(!ctx.has_async_alloc());
        assert!(ctx.total_mem().unwrap() >= 80 << 30);
    }
    let e = format!("{:?}", DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
    assert!(
        e.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && e.contains("illegal memory access"),
        "{e}"
    );
}

#[test]
fn modules_are_refused_with_a_reason() {
    let (h100, _) = device(0);
    let (a100, _) = device(1);
    let text = increment();
    let load = |ctx: &Arc<CudaContext>, text: String| error(ctx.load_module(Ptx::from_src(text)));
    assert_eq!(load(&h100, text.clone()), CUresult::CUDA_SUCCESS);
    assert_eq!(
        load(&h100, text.replace("7.8", "9.1")),
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    );
    assert_eq!(
        load(&h100, text.replace("sm_80", "sm_90")),
        CUresult::CUDA_SUCCESS
    );
    assert_eq!(
        load(&a100, text.replace("sm_80", "sm_90")),
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
    );
    assert_eq!(
        load(&h100, text.replace("sm_80", "sm_100")),
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
    );
    assert_eq!(
        load(&h100, text.replace("sm_80", "sm_80a")),
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
    );
    // An unknown opcode, modifier and directive; a wrong type, label, register.
    for (good, bad) in [
        ("add.u32", "frobnicate.u32"),
        ("add.u32", "add.sometimes.u32"),
        ("ret;", ".frob 3; ret;"),
        ("st.global.u32 [%rd1], %r2", "st.global.u64 [%rd1], %r2"),
        ("ret;", "bra NOWHERE; ret;"),
        ("%r2, %r2, 1", "%r2, %q2, 1"),
        ("ld.param.u64 %rd1, [p]", "ld.param.u64 %rd1, [q]"),
    ] {
        assert!(text.contains(good));
        assert_eq!(
            load(&h100, text.replace(good, bad)),
            CUresult::CUDA_ERROR_INVALID_PTX,
            "{bad}"
        );
    }
    assert_eq!(
        load(&h100, "hello".into()),
        CUresult::CUDA_ERROR_INVALID_IMAGE
    );
    // Machine code.
    let cubin = Ptx::from_binary([&b"\x7fELF\x02\x01\x01"[..], &[0; 57]].concat());
    assert_eq!(
        error(h100.load_module(cubin)),
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
    );
    // The log of cuModuleLoadDataEx names line and text.
    let bad = std::ffi::CString::new(text.replace("add.u32", "frobnicate.u32")).unwrap();
    let mut log = [0u8; 256];
    let mut options = [
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option_enum::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values = [log.as_mut_ptr().cast(), log.len() as *mut std::ffi::c_void];
    let mut module = std::ptr::null_mut();
    h100.bind_to_thread().unwrap();
    let status = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            bad.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    assert_eq!(status, CUresult::CUDA_ERROR_INVALID_PTX);
    let log = std::ffi::CStr::from_bytes_until_nul(&log)
        .unwrap()
        .to_str()
        .unwrap();
    assert!(
        log.contains("`frobnicate.u32`") && log.contains("line"),
        "{log}"
    );
}

#[test]
fn functions_and_variables() {
    let (ctx, stream) = device(0);
    let text = module(
        ".global .align 4 .u32 counter = 41; .const .align 8 .u64 where[1] = {counter}; .global .align 4 .b8 zeros[64];",
        "",
        ".reg .b32 %r<4>; .reg .b64 %rd<4>; .shared .align 8 .b8 s[40];
        ld.const.u64 %rd1, [where]; ld.u32 %r1, [%rd1]; add.u32 %r1, %r1, 1; st.global.u32 [counter], %r1;",
    )
    .replace("()\n", "()\n.maxntid 128, 2, 1\n.maxnreg 64\n");
    let m = ctx.load_module(Ptx::from_src(text)).unwrap();
    assert_eq!(
        error(m.load_function("nothing")),
        CUresult::CUDA_ERROR_NOT_FOUND
    );
    let f = m.load_function("k").unwrap();
    assert_eq!(f.num_regs().unwrap(), 64);
    assert_eq!(f.shared_size_bytes().unwrap(), 40);
    assert_eq!(f.max_threads_per_block().unwrap(), 256);
    assert_eq!(
        f.occupancy_max_active_blocks_per_multiprocessor(256, 0, None)
            .unwrap(),
        8
    );
    assert_eq!(
        f.occupancy_max_active_blocks_per_multiprocessor(256, 40 << 10, None)
            .unwrap(),
        5
    );
    unsafe { stream.launch_builder(&f).launch(config(1, 1)) }.unwrap();
    let counter = m.get_global("counter", &stream).unwrap();
    let mut value = [0u8; 4];
    stream.memcpy_dtoh(&counter, &mut value).unwrap();
    assert_eq!(u32::from_le_bytes(value), 42);
    let e = unsafe { stream.launch_builder(&f).launch(config(1, 257)) };
    assert_eq!(error(e), CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
}

#[test]
fn memory() {
    let (ctx, stream) = device(0);
    // A gigabyte is allocated without being touched.
    let start = std::time::Instant::now();
    let big = unsafe { stream.alloc::<u8>(1 << 30) }.unwrap();
    assert!(start.elapsed().as_millis() < 200);
    let (free, total) = ctx.mem_get_info().unwrap();
    assert!(free + (1 << 30) <= total);
    drop(big);
    let data: Vec<u8> = (0..1001).map(|i| i as u8).collect();
    let a = stream.clone_htod(&data).unwrap();
    // More than the device has, more than the addresses of an allocation, more than 64 bits can count
    // together with what is in use.
    for bytes in [81 << 30, 40 << 30, usize::MAX - 1000, usize::MAX] {
        assert_eq!(
            error(unsafe { stream.alloc::<u8>(bytes) }),
            CUresult::CUDA_ERROR_OUT_OF_MEMORY
        );
        let mut pinned = std::ptr::null_mut();
        let status = unsafe { sys::cuMemHostAlloc(&mut pinned, bytes | 1 << 63, 0) };
        assert_eq!(status, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
    let mut b = stream.alloc_zeros::<u8>(2000).unwrap();
    stream
        .memcpy_dtod(&a.slice(1..1000), &mut b.slice_mut(3..1002))
        .unwrap();
    let back = stream.clone_dtoh(&b).unwrap();
    assert_eq!(back[3..1002], data[1..1000]);
    assert!(back[..3].iter().chain(&back[1002..]).all(|&x| x == 0));
    // What nobody has written is not zero.
    let mut partly = unsafe { stream.alloc::<u8>(27) }.unwrap();
    stream.memset_zeros(&mut partly.slice_mut(5..21)).unwrap();
    let back = stream.clone_dtoh(&partly).unwrap();
    assert_eq!((&back[..5], &back[21..]), (&[0xff; 5][..], &[0xff; 6][..]));
    assert_eq!(back[5..21], [0; 16]);
    let (address, _guard) = a.device_ptr(&stream);
    assert_eq!(address % 256, 0);
    let mut out = [0u8; 16];
    let past = unsafe { result::memcpy_dtoh_sync(&mut out, address + 1000) };
    assert_eq!(error(past), CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(
        error(unsafe { result::free_sync(address + 1) }),
        CUresult::CUDA_ERROR_INVALID_VALUE
    );
    let mut pinned = unsafe { ctx.alloc_pinned::<u8>(100) }.unwrap();
    pinned.as_mut_slice().unwrap().fill(7);
    let c = stream.clone_htod(&pinned).unwrap();
    assert_eq!(stream.clone_dtoh(&c).unwrap(), [7; 100]);
    let mut d: u64 = 0;
    let attribute = sys::CUpointer_attribute_enum::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR;
    let status = unsafe { sys::cuPointerGetAttribute((&raw mut d).cast(), attribute, address + 5) };
    assert_eq!((status, d), (CUresult::CUDA_SUCCESS, address));
}

#[test]
fn streams_and_events() {
    let (ctx, _) = device(0);
    let stream = ctx.new_stream().unwrap();
    let other = stream.fork().unwrap();
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let (a, b) = (ctx.new_event(flags).unwrap(), ctx.new_event(flags).unwrap());
    a.record(&stream).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(2));
    b.record(&other).unwrap();
    let ms = a.elapsed_ms(&b).unwrap();
    assert!((1.9..1000.0).contains(&ms), "{ms}");
    stream.wait(&b).unwrap();
    let untimed = ctx.new_event(None).unwrap();
    untimed.record(&stream).unwrap();
    assert!(untimed.elapsed_ms(&b).is_err());
    stream.synchronize().unwrap();
    ctx.synchronize().unwrap();
    // A stale handle is no handle.
    let handle = stream.cu_stream();
    drop(stream);
    assert_eq!(
        error(unsafe { result::stream::synchronize(handle) }),
        CUresult::CUDA_ERROR_INVALID_HANDLE
    );
}

/// A stream, and a function that increments, with event tracking off as captures need it. On a device
/// of their own: no other thread may wait for a whole device under capture.
fn capture_setup() -> (
    Arc<CudaContext>,
    Arc<CudaStream>,
    cudarc::driver::CudaFunction,
) {
    let (ctx, _) = device(1);
    // SAFETY: launches are synchronous here.
    unsafe { ctx.disable_event_tracking() };
    let stream = ctx.new_stream().unwrap();
    let f = function(&ctx, &increment());
    // Loads it.
    f.num_regs().unwrap();
    (ctx, stream, f)
}

#[test]
fn graphs() {
    let (_ctx, stream, f) = capture_setup();
    let mut data = stream.clone_htod(&vec![5u32; 64]).unwrap();
    stream
        .begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        .unwrap();
    assert_eq!(
        stream.capture_status().unwrap(),
        CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE
    );
    let ((), reports) = record(|| {
        for _ in 0..3 {
            unsafe {
                stream
                    .launch_builder(&f)
                    .arg(&mut data)
                    .launch(config(2, 32))
            }
            .unwrap();
        }
    });
    assert!(reports.is_empty(), "nothing runs during a capture");
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [5; 64]);
    graph.upload().unwrap();
    let ((), reports) = record(|| {
        graph.launch().unwrap();
        graph.launch().unwrap();
    });
    assert_eq!(reports.len(), 6);
    assert_eq!(stream.clone_dtoh(&data).unwrap(), [11; 64]);
}

#[test]
fn captures_forbid_what_cuda_forbids() {
    let (ctx, stream, f) = capture_setup();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let data = stream.alloc_zeros::<u32>(64).unwrap();
    let event = ctx.new_event(None).unwrap();
    event.record(&ctx.default_stream()).unwrap();
    type Forbidden<'a> = (&'a dyn Fn() -> CUresult, CUresult);
    let cases: [Forbidden; 5] = [
        (
            &|| error(stream.synchronize()),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        ),
        (
            &|| error(unsafe { stream.alloc::<u8>(8) }),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        ),
        (
            &|| error(ctx.load_module(Ptx::from_src(increment()))),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        ),
        (
            &|| error(stream.wait(&event)),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
        ),
        (
            &|| error(ctx.synchronize()),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        ),
    ];
    for (i, (call, want)) in cases.iter().enumerate() {
        stream.begin_capture(mode).unwrap();
        unsafe { stream.launch_builder(&f).arg(&data).launch(config(1, 32)) }.unwrap();
        assert_eq!(call(), *want, "case {i}");
        assert_eq!(
            stream.capture_status().unwrap(),
            CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED
        );
        assert_eq!(
            error(stream.end_capture(flags)),
            CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        );
    }
    // The stream works again.
    stream.synchronize().unwrap();
    assert_eq!(
        error(ctx.default_stream().begin_capture(mode)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    );
}

#[test]
fn threads_launch_at_once() {
    let (ctx, _) = device(0);
    let threads: Vec<_> = (0..4)
        .map(|t| {
            let ctx = ctx.clone();
            std::thread::spawn(move || {
                let stream = ctx.new_stream().unwrap();
                let f = function(&ctx, &increment());
                let schedule = if t % 2 == 0 {
                    Schedule::InOrder
                } else {
                    Schedule::Seeded(t)
                };
                let settings = Settings {
                    schedule,
                    ..Settings::default()
                };
                for round in 0..10u32 {
                    let mut data = stream.clone_htod(&vec![round; 1024]).unwrap();
                    let ((), reports) = with_settings(settings, || {
                        record(|| {
                            unsafe {
                                stream
                                    .launch_builder(&f)
                                    .arg(&mut data)
                                    .launch(config(8, 128))
                            }
                            .unwrap();
                        })
                    });
                    assert_eq!(reports.len(), 1);
                    assert_eq!(reports[0].buffers[0].bytes_written, 4096);
                    assert_eq!(stream.clone_dtoh(&data).unwrap(), [round + 1; 1024]);
                }
            })
        })
        .collect();
    for t in threads {
        t.join().unwrap();
    }
}

#[test]
fn dynamic_shared_memory_and_big_grids() {
    let (ctx, stream) = device(0);
    let text = module(
        ".extern .shared .align 16 .b8 dyn[];",
        ".param .u64 p",
        ".reg .b32 %r<9>; .reg .b64 %rd<4>; .reg .pred %p<2>; ld.param.u64 %rd1, [p]; mov.u32 %r1, dyn;
        mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.x; mov.u32 %r4, %ntid.x; mad.lo.u32 %r2, %r2, %r4, %r3;
        shl.b32 %r5, %r2, 2; add.u32 %r1, %r1, %r5; st.shared.u32 [%r1], %r2; ld.shared.u32 %r6, [%r1];
        mov.u32 %r7, %ctaid.z; setp.ne.u32 %p1, %r7, 6; @%p1 exit; mov.u32 %r7, %ctaid.y; setp.ne.u32 %p1, %r7, 4; @%p1 exit;
        mad.wide.u32 %rd1, %r2, 4, %rd1; st.global.u32 [%rd1], %r6;",
    );
    let f = function(&ctx, &text);
    let mut out = stream.alloc_zeros::<u32>(64).unwrap();
    let launch = |out: &mut _, shared| {
        let cfg = LaunchConfig {
            grid_dim: (1, 5, 7),
            block_dim: (8, 8, 1),
            shared_mem_bytes: shared,
        };
        unsafe { stream.launch_builder(&f).arg(out).launch(cfg) }.map(|_| ())
    };
    launch(&mut out, 256).unwrap();
    assert!(stream.clone_dtoh(&out).unwrap().into_iter().eq(0..64));
    assert_eq!(
        error(launch(&mut out, 252)),
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
    );
}
