//! How fast the emulator is: PTX instructions per second.
//!
//!     cargo run --release -p cuda-emulator --example speed
//!
//! The kernel has the shape of those in `kernels/`: 16-byte loads of bf16, an exponential and a dozen
//! f32 operations per element, 16-byte stores, then a sum over the block by shuffles and shared memory.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::time::Instant;

use cuda_emulator::{Schedule, Settings, install, record, with_settings};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

const THREADS: u32 = 256;
/// 16-byte vectors per thread.
const VECTORS: usize = 16;
const ELEMENTS: usize = 1 << 20;

/// y = xIELU-like(x) in bf16, and one sum per block.
fn kernel() -> String {
    let mut lanes = String::new();
    for (word, half) in (0..4).flat_map(|w| [(w, 0), (w, 1)]) {
        let cut = ["shl.b32 %r20, %r{w}, 16;", "and.b32 %r20, %r{w}, -65536;"][half];
        let cut = cut.replace("{w}", &(10 + word).to_string());
        write!(
            lanes,
            "{cut} mov.b32 %f1, %r20; setp.gt.f32 %p2, %f1, 0f00000000; abs.f32 %f2, %f1; neg.f32 %f3, %f2;
            mul.rn.f32 %f3, %f3, 0f3FB8AA3B; cvt.rni.f32.f32 %f4, %f3; sub.rn.f32 %f5, %f3, %f4;
            ex2.approx.ftz.f32 %f6, %f5; ex2.approx.ftz.f32 %f7, %f4; mul.rn.f32 %f6, %f6, %f7;
            add.rn.f32 %f6, %f6, 0fBF800000; fma.rn.f32 %f8, %f1, %f1, 0f3F000000; fma.rn.f32 %f8, %f8, 0f3F4CCCCD, %f1;
            fma.rn.f32 %f9, %f6, 0f3F4CCCCD, %f1; selp.f32 %f10, %f8, %f9, %p2; add.rn.f32 %f20, %f20, %f10;
            mov.b32 %r21, %f10; shr.u32 %r22, %r21, 16; and.b32 %r22, %r22, 1; add.s32 %r22, %r22, 32767;
            add.s32 %r22, %r22, %r21; shr.u32 %r{}, %r22, 16;\n",
            30 + 2 * word + half
        )
        .expect("a string takes all");
    }
    format!(
        ".version 7.0\n.target sm_80\n.address_size 64
.visible .entry speed(.param .u64 x, .param .u64 y, .param .u64 sums) {{
.reg .pred %p<9>; .reg .b32 %r<50>; .reg .f32 %f<30>; .reg .b64 %rd<9>; .shared .align 4 .b8 s[32];
ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y]; ld.param.u64 %rd3, [sums];
mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mad.lo.s32 %r3, %r2, {span}, %r1;
mul.wide.u32 %rd4, %r3, 16; add.s64 %rd1, %rd1, %rd4; add.s64 %rd2, %rd2, %rd4;
mov.u32 %r4, 0; mov.f32 %f20, 0f00000000;
LOOP:
ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd1];
{lanes}
shl.b32 %r31, %r31, 16; or.b32 %r30, %r30, %r31; shl.b32 %r33, %r33, 16; or.b32 %r32, %r32, %r33;
shl.b32 %r35, %r35, 16; or.b32 %r34, %r34, %r35; shl.b32 %r37, %r37, 16; or.b32 %r36, %r36, %r37;
st.global.v4.b32 [%rd2], {{%r30, %r32, %r34, %r36}};
add.s64 %rd1, %rd1, {step}; add.s64 %rd2, %rd2, {step}; add.s32 %r4, %r4, 1;
setp.lt.s32 %p1, %r4, {VECTORS}; @%p1 bra LOOP;
{shuffles}
and.b32 %r5, %r1, 31; setp.ne.s32 %p1, %r5, 0; shr.u32 %r6, %r1, 3; mov.u32 %r7, s; add.s32 %r6, %r6, %r7;
and.b32 %r6, %r6, -4; @%p1 bra WAIT; st.shared.f32 [%r6], %f20;
WAIT: bar.sync 0; setp.ne.s32 %p1, %r1, 0; @%p1 bra END;
ld.shared.f32 %f21, [s]; ld.shared.f32 %f22, [s+4]; add.rn.f32 %f21, %f21, %f22;
mul.wide.u32 %rd4, %r2, 4; add.s64 %rd3, %rd3, %rd4; st.global.f32 [%rd3], %f21;
END: ret; }}",
        span = THREADS as usize * VECTORS,
        step = THREADS * 16,
        shuffles = [16, 8, 4, 2, 1].map(|n| format!(
            "mov.b32 %r8, %f20; shfl.sync.down.b32 %r9, %r8, {n}, 31, -1; mov.b32 %f21, %r9; add.rn.f32 %f20, %f20, %f21;"
        )).join("\n"),
    )
}

fn main() {
    install().expect("Linux");
    let ctx = CudaContext::new(0).expect("emulated");
    let stream = ctx.default_stream();
    let module = ctx.load_module(Ptx::from_src(kernel())).expect("PTX");
    let f = module.load_function("speed").expect("the entry");
    // Values in (-4, 4).
    let bytes: Vec<u8> = (0..ELEMENTS)
        .flat_map(|i| {
            let x = ((i * 7919) % 8191) as f32 / 1024.0 - 4.0;
            half::bf16::from_f32(x).to_le_bytes()
        })
        .collect();
    let blocks = (ELEMENTS / 8 / VECTORS) as u32 / THREADS;
    let x = stream.clone_htod(&bytes).expect("memory");
    let mut y = stream.alloc_zeros::<u8>(bytes.len()).expect("memory");
    let mut sums = stream.alloc_zeros::<f32>(blocks as usize).expect("memory");
    let mut launch = || {
        let cfg = LaunchConfig {
            grid_dim: (blocks, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let start = Instant::now();
        let mut builder = stream.launch_builder(&f);
        builder.arg(&x).arg(&mut y).arg(&mut sums);
        // SAFETY: the arguments are those that the kernel declares, and the grid covers them exactly.
        unsafe { builder.launch(cfg) }.expect("no finding");
        start.elapsed()
    };
    let (_, reports) = record(&mut launch);
    let n = reports[0].instructions;
    let one = NonZeroUsize::new(1);
    for (name, schedule, counting, workers) in [
        ("in order", Schedule::InOrder, false, one),
        ("in order, counting", Schedule::InOrder, true, one),
        ("reversed", Schedule::Reversed, false, one),
        ("seeded", Schedule::Seeded(1), false, one),
        ("in order, idle cores", Schedule::InOrder, false, None),
    ] {
        let settings = Settings {
            schedule,
            workers,
            ..Settings::default()
        };
        // The best of five: other work on the machine only slows it down.
        let best = (0..5)
            .map(|_| {
                with_settings(settings, || {
                    if counting {
                        record(&mut launch).0
                    } else {
                        launch()
                    }
                })
            })
            .min()
            .expect("five");
        println!(
            "{name:>20}: {n} instructions in {best:.1?}, {:.0} million per second",
            n as f64 / best.as_secs_f64() / 1e6
        );
    }
}
