//! Bugs planted into a cross-entropy kernel, one by one: each is reported, by the right check, at the right
//! place, under every schedule; and the kernel without them is clean.
#![allow(clippy::undocumented_unsafe_blocks)] // Launches: the emulator survives any argument.

mod common;

use common::{SCHEDULES, device, function};
use cuda_emulator::{Check, Finding, Schedule, Settings, record, with_settings};
use cudarc::driver::{LaunchConfig, PushKernelArg, sys::CUresult};

/// One block of two warps per row: loss, and the gradient in place of the logits. A negative label is ignored.
/// The last block to finish adds up the losses.
const KERNEL: &str = r#"
.version 7.0
.target sm_80
.address_size 64
.file 1 "kernels/planted.cu"
.const .align 4 .f32 log2e = 0f3FB8AA3B;
.visible .entry k(.param .u64 logits, .param .u64 labels, .param .u64 losses, .param .u64 counters, .param .u32 n)
{
.reg .pred %p<20>; .reg .b32 %r<40>; .reg .f32 %f<40>; .reg .b64 %rd<30>;
.shared .align 4 .b8 s[128];
.local .align 4 .b8 stack[8];
ld.param.u64 %rd1, [logits]; ld.param.u64 %rd2, [labels]; ld.param.u64 %rd3, [losses]; ld.param.u64 %rd4, [counters];
ld.param.u32 %r1, [n];
mov.u32 %r2, %tid.x; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %nctaid.x;
and.b32 %r5, %r2, 31; shr.u32 %r6, %r2, 5;
ld.const.f32 %f30, [log2e];
setp.eq.s32 %p10, %r2, 0; setp.eq.s32 %p11, %r5, 0; setp.lt.u32 %p12, %r5, 2;
mul.wide.u32 %rd5, %r3, 4; add.s64 %rd6, %rd2, %rd5; add.s64 %rd7, %rd3, %rd5;
ld.global.u32 %r7, [%rd6];
mov.f32 %f20, 0f00000000;
setp.lt.s32 %p1, %r7, 0; @%p1 bra FINISH; // ignored
mul.lo.s32 %r8, %r3, %r1; mul.wide.s32 %rd8, %r8, 4; add.s64 %rd9, %rd1, %rd8;
mul.wide.s32 %rd10, %r7, 4; add.s64 %rd10, %rd9, %rd10;
mov.f32 %f1, 0fFF800000; // maximum
mov.u32 %r9, %r2;
and.b64 %rd11, %rd9, 15; setp.ne.s64 %p2, %rd11, 0; @%p2 bra TAIL; // unaligned
shl.b32 %r10, %r2, 2; and.b32 %r11, %r1, -4; add.s32 %r9, %r11, %r2;
VECTOR:
setp.ge.u32 %p3, %r10, %r11; @%p3 bra TAIL;
mul.wide.u32 %rd12, %r10, 4; add.s64 %rd12, %rd9, %rd12;
ld.global.v4.f32 {%f2, %f3, %f4, %f5}, [%rd12];
max.f32 %f2, %f2, %f3; max.f32 %f4, %f4, %f5; max.f32 %f2, %f2, %f4; max.f32 %f1, %f1, %f2;
add.s32 %r10, %r10, 256; bra VECTOR;
TAIL:
setp.ge.u32 %p3, %r9, %r1; @%p3 bra MAXIMUM; // tail
mul.wide.u32 %rd12, %r9, 4; add.s64 %rd12, %rd9, %rd12;
.loc 1 21 3
ld.global.f32 %f2, [%rd12];
max.f32 %f1, %f1, %f2; add.s32 %r9, %r9, 64; bra TAIL;
MAXIMUM:
.loc 1 24 3
mov.b32 %r12, %f1;
shfl.sync.bfly.b32 %r13, %r12, 16, 31, -1; mov.b32 %f2, %r13; max.f32 %f1, %f1, %f2; mov.b32 %r12, %f1;
shfl.sync.bfly.b32 %r13, %r12, 8, 31, -1; /* maxima */ mov.b32 %f2, %r13; max.f32 %f1, %f1, %f2; mov.b32 %r12, %f1;
shfl.sync.bfly.b32 %r13, %r12, 4, 31, -1; mov.b32 %f2, %r13; max.f32 %f1, %f1, %f2; mov.b32 %r12, %f1;
shfl.sync.bfly.b32 %r13, %r12, 2, 31, -1; mov.b32 %f2, %r13; max.f32 %f1, %f1, %f2; mov.b32 %r12, %f1;
shfl.sync.bfly.b32 %r13, %r12, 1, 31, -1; mov.b32 %f2, %r13; max.f32 %f1, %f1, %f2;
mov.u32 %r14, s; shl.b32 %r15, %r6, 2; add.s32 %r15, %r14, %r15; shl.b32 %r16, %r5, 2; add.s32 %r16, %r14, %r16;
@%p11 st.shared.f32 [%r15], %f1; // maximum of a warp
bar.sync 0; // first
mov.f32 %f2, 0fFF800000;
@%p12 ld.shared.f32 %f2, [%r16]; // maximum of the warps
mov.b32 %r12, %f2; shfl.sync.bfly.b32 %r13, %r12, 1, 31, -1; mov.b32 %f3, %r13; max.f32 %f2, %f2, %f3;
mov.b32 %r12, %f2; shfl.sync.idx.b32 %r13, %r12, 0, 31, -1; mov.b32 %f1, %r13;
mov.f32 %f6, 0f00000000; mov.u32 %r9, %r2;
SUM:
setp.ge.u32 %p3, %r9, %r1; @%p3 bra SUMMED;
mul.wide.u32 %rd12, %r9, 4; add.s64 %rd12, %rd9, %rd12;
ld.global.f32 %f2, [%rd12]; // sum
sub.rn.f32 %f2, %f2, %f1; mul.rn.f32 %f2, %f2, %f30; ex2.approx.ftz.f32 %f2, %f2; add.rn.f32 %f6, %f6, %f2;
add.s32 %r9, %r9, 64; bra SUM; // next
SUMMED:
mov.b32 %r12, %f6;
shfl.sync.bfly.b32 %r13, %r12, 16, 31, -1; mov.b32 %f2, %r13; add.rn.f32 %f6, %f6, %f2; mov.b32 %r12, %f6;
shfl.sync.bfly.b32 %r13, %r12, 8, 31, -1; mov.b32 %f2, %r13; add.rn.f32 %f6, %f6, %f2; mov.b32 %r12, %f6;
shfl.sync.bfly.b32 %r13, %r12, 4, 31, -1; mov.b32 %f2, %r13; add.rn.f32 %f6, %f6, %f2; mov.b32 %r12, %f6;
shfl.sync.bfly.b32 %r13, %r12, 2, 31, -1; mov.b32 %f2, %r13; add.rn.f32 %f6, %f6, %f2; mov.b32 %r12, %f6;
shfl.sync.bfly.b32 %r13, %r12, 1, 31, -1; mov.b32 %f2, %r13; add.rn.f32 %f6, %f6, %f2;
@%p10 ld.global.f32 %f7, [%rd10]; // target
bar.sync 0; // second
@%p11 st.shared.f32 [%r15], %f6; // sum of a warp
bar.sync 0; // third
mov.f32 %f2, 0f00000000;
@%p12 ld.shared.f32 %f2, [%r16]; // sum of the warps
mov.b32 %r12, %f2; shfl.sync.bfly.b32 %r13, %r12, 1, 31, -1; mov.b32 %f3, %r13; add.rn.f32 %f2, %f2, %f3;
mov.b32 %r12, %f2; shfl.sync.idx.b32 %r13, %r12, 0, 31, -1; mov.b32 %f6, %r13;
rcp.rn.f32 %f8, %f6; mov.u32 %r9, %r2;
GRADIENT:
setp.ge.u32 %p3, %r9, %r1; @%p3 bra LOSS;
mul.wide.u32 %rd12, %r9, 4; add.s64 %rd12, %rd9, %rd12;
ld.global.f32 %f2, [%rd12]; // gradient
sub.rn.f32 %f2, %f2, %f1; mul.rn.f32 %f2, %f2, %f30; ex2.approx.ftz.f32 %f2, %f2; mul.rn.f32 %f2, %f2, %f8;
setp.eq.s32 %p4, %r9, %r7; selp.f32 %f3, 0fBF800000, 0f00000000, %p4; add.rn.f32 %f2, %f2, %f3;
st.global.f32 [%rd12], %f2;
add.s32 %r9, %r9, 64; bra GRADIENT;
LOSS:
@!%p10 bra FINISH;
lg2.approx.f32 %f9, %f6; mul.rn.f32 %f9, %f9, 0f3F317218; add.rn.f32 %f9, %f9, %f1; sub.rn.f32 %f20, %f9, %f7;
st.local.f32 [stack], %f20; // spill
ld.local.f32 %f20, [stack];
red.global.add.u32 [%rd4+4], 1; // count
FINISH:
@!%p10 bra END;
st.global.f32 [%rd7], %f20;
membar.gl; // release
atom.global.add.u32 %r20, [%rd4], 1;
add.s32 %r21, %r4, -1; setp.ne.s32 %p5, %r20, %r21; @%p5 bra END;
membar.gl;
mov.f32 %f10, 0f00000000; mov.u32 %r22, 0;
TOTAL:
mul.wide.u32 %rd13, %r22, 4; add.s64 %rd13, %rd3, %rd13; ld.global.f32 %f11, [%rd13]; // total
add.rn.f32 %f10, %f10, %f11; add.s32 %r22, %r22, 1; setp.lt.u32 %p6, %r22, %r4; @%p6 bra TOTAL;
st.global.f32 [%rd4+8], %f10;
END: ret;
}
"#;

const ROWS: usize = 4;

/// What a run of the kernel gives.
struct Run {
    status: Result<(), CUresult>,
    finding: Option<Finding>,
    gradient: Vec<f32>,
    losses: Vec<f32>,
    counters: Vec<u32>,
}

fn logits(n: usize) -> Vec<f32> {
    (0..ROWS * n)
        .map(|i| (i * 37 % 101) as f32 * 0.05 - 2.0)
        .collect()
}

/// Runs a text with rows of `n` logits.
fn run(text: &str, n: usize, labels: [i32; ROWS], schedule: Schedule) -> Run {
    let (ctx, stream) = device(0);
    let f = function(&ctx, text);
    let mut x = stream.clone_htod(&logits(n)).unwrap();
    let labels = stream.clone_htod(&labels).unwrap();
    let mut losses = unsafe { stream.alloc::<f32>(ROWS) }.unwrap();
    let mut counters = stream.alloc_zeros::<u32>(3).unwrap();
    let settings = Settings {
        schedule,
        instruction_budget: 1 << 16,
        ..Settings::default()
    };
    let config = LaunchConfig {
        grid_dim: (ROWS as u32, 1, 1),
        block_dim: (64, 1, 1),
        shared_mem_bytes: 0,
    };
    let (status, reports) = with_settings(settings, || {
        record(|| {
            let mut launch = stream.launch_builder(&f);
            launch
                .arg(&mut x)
                .arg(&labels)
                .arg(&mut losses)
                .arg(&mut counters);
            unsafe { launch.arg(&(n as u32)).launch(config) }
                .map(|_| ())
                .map_err(|e| e.0)
        })
    });
    Run {
        status,
        finding: reports[0].finding.clone(),
        gradient: stream.clone_dtoh(&x).unwrap(),
        losses: stream.clone_dtoh(&losses).unwrap(),
        counters: stream.clone_dtoh(&counters).unwrap(),
    }
}

/// No false alarm, and the right numbers, for rows of every alignment and under many schedules.
#[test]
fn the_kernel_without_bugs_is_clean() {
    let schedules = SCHEDULES.into_iter().chain((3..23).map(Schedule::Seeded));
    for (i, schedule) in schedules.enumerate() {
        for n in [64, 37, 128 + i] {
            let labels = [3, -1, n as i32 - 1, 0];
            let run = run(KERNEL, n, labels, schedule);
            assert_eq!(run.status, Ok(()), "{schedule:?}: {}", run.finding.unwrap());
            let x = logits(n);
            for (row, &label) in labels.iter().enumerate() {
                let x = &x[row * n..(row + 1) * n];
                let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
                let (loss, kept) = match usize::try_from(label) {
                    Ok(label) => (sum.ln() - f64::from(x[label]), true),
                    Err(_) => (0.0, false),
                };
                assert!(
                    (f64::from(run.losses[row]) - loss).abs() < 1e-5,
                    "{n} {row}"
                );
                for (j, &x) in x.iter().enumerate() {
                    let p = f64::from(x).exp() / sum - f64::from(u8::from(j as i32 == label));
                    let want = if kept { p } else { f64::from(x) };
                    assert!((f64::from(run.gradient[row * n + j]) - want).abs() < 1e-6);
                }
            }
            assert_eq!(run.counters[..2], [ROWS as u32, 3]);
            let total: f32 = run.losses.iter().sum();
            assert!((f32::from_bits(run.counters[2]) - total).abs() < 1e-5);
        }
    }
}

/// A bug: what is replaced by what, and what the report says.
struct Bug {
    name: &'static str,
    from: &'static str,
    to: &'static str,
    /// Which of these come first depends on the schedule.
    checks: &'static [Check],
    error: CUresult,
    /// Part of the message: instruction, buffer, offset.
    says: &'static str,
}

const ILLEGAL: CUresult = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
const FAILED: CUresult = CUresult::CUDA_ERROR_LAUNCH_FAILED;

/// The bugs of the design notes, then others.
const BUGS: &[Bug] = &[
    Bug {
        name: "the first barrier is missing",
        from: "bar.sync 0; // first",
        to: "",
        checks: &[Check::SharedRace, Check::Uninitialised],
        error: FAILED,
        says: "`ld.shared.f32`",
    },
    Bug {
        name: "the second barrier is missing",
        from: "bar.sync 0; // second",
        to: "",
        checks: &[Check::SharedRace],
        error: FAILED,
        says: "of `s`",
    },
    Bug {
        name: "the third barrier is missing",
        from: "bar.sync 0; // third",
        to: "",
        checks: &[Check::SharedRace, Check::GlobalRace],
        error: FAILED,
        says: "with nothing between them that orders the two",
    },
    Bug {
        name: "the tail loop runs to <= n",
        from: "setp.ge.u32 %p3, %r9, %r1; @%p3 bra MAXIMUM; // tail",
        to: "setp.gt.u32 %p3, %r9, %r1; @%p3 bra MAXIMUM;",
        checks: &[Check::OutOfBounds, Check::GlobalRace],
        error: ILLEGAL,
        says: "`ld.global.f32`",
    },
    Bug {
        name: "unaligned rows take the vector path",
        from: "@%p2 bra TAIL; // unaligned",
        to: "",
        checks: &[Check::Misaligned],
        error: CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
        says: "16-byte load at address",
    },
    Bug {
        name: "all lanes read the sums of two warps",
        from: "@%p12 ld.shared.f32 %f2, [%r16]; // maximum of the warps",
        to: "ld.shared.f32 %f2, [%r16];",
        checks: &[Check::Uninitialised],
        error: FAILED,
        says: "of shared memory were never written",
    },
    Bug {
        name: "half of the warp is missing from a mask",
        from: "shfl.sync.bfly.b32 %r13, %r12, 8, 31, -1; /* maxima */",
        to: "shfl.sync.bfly.b32 %r13, %r12, 8, 31, 0xffff;",
        checks: &[Check::MemberMask],
        error: FAILED,
        says: "0x0000ffff does not contain lane",
    },
    Bug {
        name: "a barrier in each of two branches",
        from: "bar.sync 0; // first",
        to: "setp.lt.u32 %p7, %r5, 16; @%p7 bra LOW; bar.sync 0; bra HIGH; LOW: bar.sync 0; HIGH:",
        checks: &[Check::DivergentBarrier],
        error: FAILED,
        says: "of the same warp waits at another barrier",
    },
    Bug {
        name: "shared memory for one warp",
        from: ".b8 s[128]",
        to: ".b8 s[4]",
        checks: &[Check::OutOfBounds],
        error: ILLEGAL,
        says: "at offset 4 of `s`, which has 4 bytes",
    },
    Bug {
        name: "+= instead of an atomic",
        from: "red.global.add.u32 [%rd4+4], 1; // count",
        to: "ld.global.u32 %r30, [%rd4+4]; add.s32 %r30, %r30, 1; st.global.u32 [%rd4+4], %r30;",
        checks: &[Check::GlobalRace],
        error: FAILED,
        says: "offset 4 of allocation",
    },
    Bug {
        name: "an ignored label is used as an index",
        from: "@%p1 bra FINISH; // ignored",
        to: "",
        checks: &[Check::GlobalRace],
        error: FAILED,
        says: "of block",
    },
    // Others.
    Bug {
        name: "the maximum has no first value",
        from: "mov.f32 %f1, 0fFF800000; // maximum",
        to: "",
        checks: &[Check::Uninitialised],
        error: FAILED,
        says: "is a register never written",
    },
    Bug {
        name: "logits through the read-only cache, and the gradient in place",
        from: "ld.global.f32 %f2, [%rd12]; // sum",
        to: "ld.global.nc.f32 %f2, [%rd12];",
        checks: &[Check::NonCoherent],
        error: FAILED,
        says: "must not be written in the same launch",
    },
    Bug {
        name: "a loop that does not advance",
        from: "add.s32 %r9, %r9, 64; bra SUM; // next",
        to: "bra SUM;",
        checks: &[Check::InstructionBudget],
        error: CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
        says: "has not ended",
    },
    Bug {
        name: "each warp at a barrier of its own",
        from: "bar.sync 0; // first",
        to: "bar.sync %r6;",
        checks: &[Check::Deadlock],
        error: CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
        says: "64 threads (first (0, 0, 0)) at ptx line",
    },
    Bug {
        name: "threads without elements return before the barrier",
        from: "mov.u32 %r14, s;",
        to: "setp.ge.u32 %p7, %r2, %r1; @%p7 exit; mov.u32 %r14, s;",
        checks: &[Check::BarrierAfterExit],
        error: FAILED,
        says: "of the same warp has returned",
    },
    Bug {
        name: "a shuffle from a lane that took another path",
        from: "@%p12 ld.shared.f32 %f2, [%r16]; // sum of the warps",
        to: "@!%p12 bra SKIP; ld.shared.f32 %f2, [%r16]; mov.b32 %r12, %f2; shfl.sync.idx.b32 %r13, %r12, 5, 31, 3; SKIP:",
        checks: &[Check::InactiveLane],
        error: FAILED,
        says: "`shfl.sync.idx.b32`",
    },
    Bug {
        name: "the ticket is taken without a fence",
        from: "membar.gl; // release",
        to: "",
        checks: &[Check::GlobalRace],
        error: FAILED,
        says: "written by thread (0, 0, 0) of block",
    },
    Bug {
        name: "a constant is written",
        from: "ld.const.f32 %f30, [log2e];",
        to: "ld.const.f32 %f30, [log2e]; mov.u64 %rd20, log2e; st.global.f32 [%rd20], %f30;",
        checks: &[Check::ReadOnly],
        error: ILLEGAL,
        says: "offset 0 of `log2e`, which is constant",
    },
    Bug {
        name: "an optional output is not asked for and still written",
        from: "st.global.f32 [%rd7], %f20;",
        to: "mov.u64 %rd20, 0; st.global.f32 [%rd20], %f20;",
        checks: &[Check::Null],
        error: ILLEGAL,
        says: "a null pointer",
    },
    Bug {
        name: "a spill is read back from elsewhere",
        from: "ld.local.f32 %f20, [stack];",
        to: "ld.local.f32 %f20, [stack+4];",
        checks: &[Check::Uninitialised],
        error: FAILED,
        says: "of local memory were never written",
    },
    Bug {
        name: "a stack that is too small",
        from: "st.local.f32 [stack], %f20; // spill",
        to: "st.local.f32 [stack+8], %f20; st.local.f32 [stack], %f20;",
        checks: &[Check::OutOfBounds],
        error: ILLEGAL,
        says: "at offset 8 of local memory, which has 8 bytes",
    },
    Bug {
        name: "a counter is reset beside atomics on it",
        from: "atom.global.add.u32 %r20, [%rd4], 1;",
        to: "mov.u32 %r31, 0; st.global.u32 [%rd4], %r31; atom.global.add.u32 %r20, [%rd4], 1;",
        checks: &[Check::GlobalRace],
        error: FAILED,
        says: "changed by an atomic of",
    },
    Bug {
        name: "an assertion fails",
        from: "TOTAL:",
        to: "TOTAL: setp.eq.u32 %p7, %r22, 2; @%p7 trap;",
        checks: &[Check::Trap],
        error: FAILED,
        says: "`trap`",
    },
];

#[test]
fn every_planted_bug_is_caught() {
    for bug in BUGS {
        assert_eq!(KERNEL.matches(bug.from).count(), 1, "{}", bug.name);
        let text = KERNEL.replace(bug.from, bug.to);
        for schedule in SCHEDULES.into_iter().chain((3..8).map(Schedule::Seeded)) {
            // Few and odd elements, so that some threads have none and some rows are not aligned.
            let run = run(&text, 37, [3, -5, 36, 0], schedule);
            let f = run
                .finding
                .unwrap_or_else(|| panic!("{}, {schedule:?}: not found", bug.name));
            let what = format!("{}, {schedule:?}: {f}", bug.name);
            assert!(bug.checks.contains(&f.check), "{what}");
            if f.check == bug.checks[0] {
                assert_eq!(run.status, Err(bug.error), "{what}");
            }
            let report = f.to_string();
            assert!(
                f.check != bug.checks[0] || report.contains(bug.says),
                "{what}"
            );
            // The place: kernel, line of the PTX with that instruction, line of the CUDA source.
            assert_eq!(f.kernel, "k", "{what}");
            let line = text.lines().nth(f.ptx_line as usize - 1).unwrap();
            let instruction = f.message.split('`').nth(1).unwrap();
            assert!(line.contains(instruction), "{what}: {line}");
            let after_loc = text
                .lines()
                .take(f.ptx_line as usize)
                .any(|l| l.starts_with(".loc "));
            let file = f.source.map(|(file, _)| file);
            assert_eq!(
                file.as_deref(),
                after_loc.then_some("kernels/planted.cu"),
                "{what}"
            );
        }
    }
}
