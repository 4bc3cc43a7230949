//! cudarc on the emulator, end to end.
#![allow(clippy::undocumented_unsafe_blocks)] // Launches: the emulator survives any argument.

use cuda_emulator::{
    Check, Schedule, Settings, install, last_finding, record, substitute, with_settings,
};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;

const ADD: &str = r#"
.version 7.0
.target sm_80
.address_size 64
.visible .entry add(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [a];
    ld.param.u64 %rd2, [b];
    ld.param.u64 %rd3, [c];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd4, %rd1;
    mul.wide.u32 %rd5, %r5, 4;
    add.s64 %rd6, %rd4, %rd5;
    ld.global.f32 %f1, [%rd6];
    cvta.to.global.u64 %rd7, %rd2;
    add.s64 %rd8, %rd7, %rd5;
    ld.global.f32 %f2, [%rd8];
    add.f32 %f3, %f1, %f2;
    add.s64 %rd6, %rd3, %rd5;
    st.global.f32 [%rd6], %f3;
DONE:
    ret;
}
"#;

#[test]
fn vector_add() {
    install().unwrap();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    let f = ctx
        .load_module(Ptx::from_src(ADD))
        .unwrap()
        .load_function("add")
        .unwrap();
    let n = 1000usize;
    let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
    let b: Vec<f32> = (0..n).map(|i| 0.5 * i as f32).collect();
    let (da, db) = (
        stream.clone_htod(&a).unwrap(),
        stream.clone_htod(&b).unwrap(),
    );
    for schedule in [
        Schedule::InOrder,
        Schedule::Reversed,
        Schedule::Seeded(1),
        Schedule::Seeded(2),
    ] {
        let mut dc = unsafe { stream.alloc::<f32>(n) }.unwrap();
        let settings = Settings {
            schedule,
            ..Settings::default()
        };
        let ((), reports) = record(|| {
            with_settings(settings, || {
                let cfg = LaunchConfig {
                    grid_dim: (4, 1, 1),
                    block_dim: (256, 1, 1),
                    shared_mem_bytes: 0,
                };
                unsafe {
                    stream
                        .launch_builder(&f)
                        .arg(&da)
                        .arg(&db)
                        .arg(&mut dc)
                        .arg(&(n as u32))
                        .launch(cfg)
                }
                .unwrap();
            })
        });
        let c = stream.clone_dtoh(&dc).unwrap();
        assert!(c.iter().enumerate().all(|(i, &c)| c == 1.5 * i as f32));
        let r = &reports[0];
        assert_eq!(r.buffers.len(), 3);
        assert_eq!(r.buffers[0].bytes_read, 4000);
        assert_eq!(r.buffers[2].bytes_written, 4000);
        if schedule == Schedule::InOrder {
            assert_eq!(r.buffers[0].loads.by_width, [0, 0, 1000, 0, 0]);
            assert_eq!(r.buffers[0].loads.sectors, 125);
            assert_eq!(r.buffers[0].loads.requests, 32);
            // The branch counts for the 24 threads that take it.
            assert_eq!(r.instructions, 1024 * 9 + 24 + 1000 * 10 + 1024);
        }
        assert!(r.lines_not_executed.is_empty());
        assert!(r.finding.is_none());
    }
}

#[test]
fn out_of_bounds_is_found() {
    install().unwrap();
    let ctx = CudaContext::new(0).unwrap();
    let stream = ctx.default_stream();
    let f = ctx
        .load_module(Ptx::from_src(ADD))
        .unwrap()
        .load_function("add")
        .unwrap();
    let a = stream.alloc_zeros::<f32>(100).unwrap();
    let b = stream.alloc_zeros::<f32>(100).unwrap();
    let mut c = stream.alloc_zeros::<f32>(100).unwrap();
    let cfg = LaunchConfig {
        grid_dim: (1, 1, 1),
        block_dim: (128, 1, 1),
        shared_mem_bytes: 0,
    };
    let r = unsafe {
        stream
            .launch_builder(&f)
            .arg(&a)
            .arg(&b)
            .arg(&mut c)
            .arg(&101u32)
            .launch(cfg)
    };
    assert_eq!(r.unwrap_err().0, sys::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let finding = last_finding().unwrap();
    assert_eq!(finding.check, Check::OutOfBounds);
    assert_eq!(finding.thread, (100, 0, 0));
    println!("{finding}");
}

#[test]
fn a_substitute_is_loaded_in_the_place_of_its_original() {
    install().unwrap();
    let ctx = CudaContext::new(0).unwrap();
    let original = ADD.replace("add(", "original(");
    let entry = |text: &str, name: &str| {
        let module = ctx.load_module(Ptx::from_src(text)).unwrap();
        module.load_function(name).is_ok()
    };
    assert!(entry(&original, "original"));
    substitute(&original, &ADD.replace("add(", "replacement("));
    assert!(entry(&original, "replacement") && !entry(&original, "original"));
    // No other text is meant.
    assert!(entry(ADD, "add"));
}
