//! Every check finds a planted bug, and the repaired kernel passes under every schedule.
#![allow(clippy::undocumented_unsafe_blocks)] // Launches: the emulator survives any argument.

mod common;

use common::{SCHEDULES, config, device, finding, function, module, run};
use cuda_emulator::{Check, Schedule, last_finding};
use cudarc::driver::{LaunchConfig, PushKernelArg, sys::CUresult};

const REGS: &str =
    ".reg .pred %p<9>; .reg .f32 %f<9>; .reg .b32 %r<19>; .reg .b64 %rd<19>; .reg .b16 %h<9>;
    ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x;
    mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd1, %rd2;
";

fn kernel(body: &str) -> String {
    module("", ".param .u64 p", &format!("{REGS}{body}"))
}

/// The check that a body of one block trips, under every schedule.
fn trips(body: &str, threads: u32, want: Check) {
    for schedule in SCHEDULES {
        let f = finding(&kernel(body), config(1, threads), schedule, 256);
        let f = f.unwrap_or_else(|| panic!("{schedule:?}: no finding"));
        assert_eq!(f.check, want, "{schedule:?}: {f}");
        assert_eq!(f.kernel, "k");
        assert!(f.ptx_line > 0);
    }
}

fn passes(body: &str, blocks: u32, threads: u32) {
    for schedule in SCHEDULES {
        let f = finding(&kernel(body), config(blocks, threads), schedule, 256);
        assert!(f.is_none(), "{schedule:?}: {}", f.unwrap());
    }
}

#[test]
fn addresses() {
    trips("st.global.u32 [%rd3+1024], %r1;", 64, Check::OutOfBounds);
    trips("ld.global.u32 %r4, [%rd3+-4];", 64, Check::OutOfBounds);
    trips("st.global.u32 [%rd3+2], %r1;", 32, Check::Misaligned);
    // Aligned to its elements, and not to the vector.
    trips(
        "ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd1+8];",
        1,
        Check::Misaligned,
    );
    trips(
        "mov.u64 %rd4, 0; ld.global.u32 %r4, [%rd4+16];",
        1,
        Check::Null,
    );
    trips(
        "mov.u64 %rd4, 0x1234567890; ld.global.u32 %r4, [%rd4];",
        1,
        Check::OutOfBounds,
    );
    passes(
        "ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd1+16]; st.global.u32 [%rd3], %r4;",
        1,
        2,
    );
}

#[test]
fn message_names_buffer_and_offset() {
    let f = finding(
        &kernel("st.global.u32 [%rd3+1024], %r1;"),
        config(1, 1),
        Schedule::InOrder,
        256,
    )
    .unwrap();
    let text = f.to_string();
    assert!(
        text.contains("offset 1024 of allocation #") && text.contains("1024 bytes"),
        "{text}"
    );
    assert!(
        text.contains("`st.global.u32`") && text.contains("ptx line"),
        "{text}"
    );
}

#[test]
fn source_lines() {
    let body = format!("{REGS} .loc 1 42 7\n mov.u64 %rd4, 0; st.global.u32 [%rd4], %r1;");
    let text = module(".file 1 \"kernels/x.cu\"", ".param .u64 p", &body);
    let f = finding(&text, config(1, 1), Schedule::InOrder, 4).unwrap();
    assert_eq!(f.source, Some(("kernels/x.cu".into(), 42)));
}

#[test]
fn use_after_free() {
    let (ctx, stream) = device(0);
    let f = function(&ctx, &kernel("ld.global.u32 %r4, [%rd3];"));
    let gone = {
        let b = stream.alloc_zeros::<u32>(64).unwrap();
        use cudarc::driver::DevicePtr;
        b.device_ptr(&stream).0
    };
    let e = unsafe { stream.launch_builder(&f).arg(&gone).launch(config(1, 32)) }.unwrap_err();
    assert_eq!(e.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(last_finding().unwrap().check, Check::UseAfterFree);
    // Unlike on a GPU, the context lives on.
    assert!(stream.alloc_zeros::<u32>(64).is_ok());
}

/// Without peer access, the memory of another device is no memory.
#[test]
fn another_device() {
    let (ctx, stream) = device(0);
    let elsewhere = device(1).1.alloc_zeros::<u32>(64).unwrap();
    let f = function(&ctx, &kernel("ld.global.u32 %r4, [%rd3];"));
    use cudarc::driver::DevicePtr;
    let address = elsewhere.device_ptr(elsewhere.stream()).0;
    let e = unsafe {
        stream
            .launch_builder(&f)
            .arg(&address)
            .launch(config(1, 32))
    }
    .unwrap_err();
    assert_eq!(e.0, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let finding = last_finding().unwrap();
    assert_eq!(finding.check, Check::OutOfBounds);
    assert!(finding.message.contains("on device 1"), "{finding}");
}

#[test]
fn uninitialised() {
    let (ctx, stream) = device(0);
    let f = function(&ctx, &kernel("ld.global.u32 %r4, [%rd3];"));
    let b = unsafe { stream.alloc::<u32>(64) }.unwrap();
    let e = unsafe { stream.launch_builder(&f).arg(&b).launch(config(1, 32)) }.unwrap_err();
    assert_eq!(e.0, CUresult::CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(last_finding().unwrap().check, Check::Uninitialised);
    // A register that only some lanes wrote.
    trips(
        "setp.eq.u32 %p1, %r1, 0; @%p1 mov.u32 %r4, 1; st.global.u32 [%rd3], %r4;",
        2,
        Check::Uninitialised,
    );
    trips("@%p1 st.global.u32 [%rd3], %r1;", 2, Check::Uninitialised);
    trips(
        ".shared .u32 s[32]; ld.shared.u32 %r4, [s];",
        1,
        Check::Uninitialised,
    );
    trips(
        ".local .u32 l[4]; ld.local.u32 %r4, [l+4];",
        1,
        Check::Uninitialised,
    );
    passes(
        ".local .u32 l[4]; st.local.u32 [l+4], %r1; ld.local.u32 %r4, [l+4]; st.global.u32 [%rd3], %r4;",
        1,
        64,
    );
}

#[test]
fn read_only() {
    let body = format!(
        "{REGS} mov.u64 %rd4, table; ld.const.u32 %r4, [table+4]; st.global.u32 [%rd1], %r4; STORE"
    );
    let text = module(
        ".const .align 4 .b32 table[2] = {5, 7};",
        ".param .u64 p",
        &body,
    );
    let (data, _, status) = run(
        &text.replace("STORE", ""),
        config(1, 1),
        Schedule::InOrder,
        &[0u32; 4],
    );
    assert_eq!((status, data[0]), (Ok(()), 7));
    let f = finding(
        &text.replace("STORE", "st.global.u32 [%rd4], %r4;"),
        config(1, 1),
        Schedule::InOrder,
        4,
    );
    assert_eq!(f.unwrap().check, Check::ReadOnly);
}

/// What a launch reads through the non-coherent path it must not write, in whatever order.
#[test]
fn non_coherent() {
    let nc = "ld.global.nc.u32 %r4, [%rd3];";
    // In place; and the other way round, which nothing orders, not even the thread itself.
    trips(
        &format!("{nc} st.global.u32 [%rd3], %r4;"),
        64,
        Check::NonCoherent,
    );
    for barrier in ["", "bar.sync 0;", "membar.gl; bar.sync 0;"] {
        trips(
            &format!("st.global.u32 [%rd3], %r1; {barrier} {nc}"),
            64,
            Check::NonCoherent,
        );
    }
    trips(
        &format!("{nc} bar.sync 0; red.global.add.u32 [%rd3], 1;"),
        64,
        Check::NonCoherent,
    );
    // One byte of what a vector access covers, read before and after it is written.
    let (vector, byte) = (
        "ld.global.nc.v4.u32 {%r4, %r5, %r6, %r7}, [%rd1];",
        "st.global.u8 [%rd1+15], %r1;",
    );
    trips(&format!("{vector} {byte}"), 1, Check::NonCoherent);
    trips(&format!("{byte} {vector}"), 1, Check::NonCoherent);
    let half = "ld.global.nc.u16 %h1, [%rd1+2];";
    trips(
        &format!("st.global.u32 [%rd1], %r1; {half}"),
        1,
        Check::NonCoherent,
    );
    // Another block: seen under every schedule, whichever runs first.
    for schedule in SCHEDULES {
        let body = "setp.eq.u32 %p1, %r2, 0; @%p1 bra W; ld.global.nc.u32 %r4, [%rd1]; bra E;
            W: st.global.u32 [%rd1], %r1; E:";
        let f = finding(&kernel(body), config(2, 1), schedule, 4).unwrap();
        assert_eq!(f.check, Check::NonCoherent, "{f}");
        assert!(
            f.message.contains("offset 0 of allocation") && f.message.contains("non-coherent path"),
            "{f}"
        );
    }
    // Other bytes, and another launch, are fine.
    passes(&format!("{nc} st.global.u32 [%rd3+256], %r4;"), 1, 64);
    passes(&format!("{half} st.global.u8 [%rd1+1], %r1;"), 1, 1);
    let (ctx, stream) = device(0);
    let reads = function(
        &ctx,
        &kernel(&format!("{nc} st.global.u32 [%rd3+128], %r4;")),
    );
    let writes = function(&ctx, &kernel("st.global.u32 [%rd3], %r1;"));
    let buffer = stream.alloc_zeros::<u32>(64).unwrap();
    for f in [&reads, &writes, &reads] {
        unsafe { stream.launch_builder(f).arg(&buffer).launch(config(1, 32)) }.unwrap();
    }
    assert_eq!(stream.clone_dtoh(&buffer).unwrap()[63], 31);
}

/// Shared memory: each thread writes its word and reads its neighbour's.
const ROTATE: &str =
    ".shared .align 4 .b8 s[256]; mov.u32 %r4, s; shl.b32 %r5, %r1, 2; add.u32 %r6, %r4, %r5;
    st.shared.u32 [%r6], %r1; BARRIER
    add.u32 %r7, %r1, 1; rem.u32 %r7, %r7, %r3; shl.b32 %r7, %r7, 2; add.u32 %r7, %r4, %r7;
    ld.shared.u32 %r8, [%r7]; AGAIN st.global.u32 [%rd3], %r8;";

#[test]
fn shared_races() {
    for schedule in SCHEDULES {
        let body = ROTATE
            .replace("BARRIER", "bar.sync 0;")
            .replace("AGAIN", "");
        let (data, report, status) = run(&kernel(&body), config(1, 64), schedule, &[0u32; 64]);
        assert_eq!(status, Ok(()), "{:?}", report.finding);
        assert!(
            data.iter()
                .enumerate()
                .all(|(i, &d)| d == (i as u32 + 1) % 64)
        );
        // No barrier: either a race, or the neighbour has not written yet.
        let body = ROTATE.replace("BARRIER", "").replace("AGAIN", "");
        let f = finding(&kernel(&body), config(1, 64), schedule, 64).unwrap();
        assert!(
            matches!(f.check, Check::SharedRace | Check::Uninitialised),
            "{f}"
        );
        // The scratch is used again without a barrier.
        let body = ROTATE
            .replace("BARRIER", "bar.sync 0;")
            .replace("AGAIN", "st.shared.u32 [%r6], %r8;");
        let f = finding(&kernel(&body), config(1, 64), schedule, 64).unwrap();
        assert_eq!(f.check, Check::SharedRace, "{f}");
        assert!(f.message.contains("of `s`"), "{f}");
    }
    // One warp orders itself with bar.warp.sync, and by nothing less.
    let body = ROTATE.replace("AGAIN", "");
    passes(&body.replace("BARRIER", "bar.warp.sync -1;"), 1, 32);
    trips(
        &body.replace("BARRIER", "shfl.sync.idx.b32 %r9, %r1, 0, 31, -1;"),
        32,
        Check::SharedRace,
    );
}

#[test]
fn shared_bounds() {
    // Into the red zone between two arrays, and past the end.
    let body = ".shared .align 4 .b8 a[64]; .shared .align 4 .b8 b[64]; st.shared.u32 [b], %r1; st.shared.u32 [a+64], %r1;";
    trips(body, 1, Check::OutOfBounds);
    trips(
        ".shared .align 4 .b8 a[64]; ld.shared.u32 %r4, [a+100000];",
        1,
        Check::OutOfBounds,
    );
    let f = finding(&kernel(body), config(1, 1), Schedule::InOrder, 4).unwrap();
    assert!(
        f.message.contains("offset 64 of `a`, which has 64 bytes"),
        "{f}"
    );
}

#[test]
fn global_races() {
    // Two threads of one block; of two blocks; += instead of an atomic.
    trips("st.global.u32 [%rd1], %r1;", 2, Check::GlobalRace);
    for schedule in SCHEDULES {
        let f = finding(
            &kernel("st.global.u32 [%rd1], %r2;"),
            config(2, 1),
            schedule,
            4,
        )
        .unwrap();
        assert_eq!(f.check, Check::GlobalRace);
        let f = finding(
            &kernel("ld.global.u32 %r4, [%rd1]; add.u32 %r4, %r4, 1; st.global.u32 [%rd1], %r4;"),
            config(2, 1),
            schedule,
            4,
        );
        assert_eq!(f.unwrap().check, Check::GlobalRace);
        let (data, _, status) = run(
            &kernel("atom.global.add.u32 %r4, [%rd1], 1; red.global.add.u32 [%rd1+4], 2;"),
            config(3, 64),
            schedule,
            &[0u32; 4],
        );
        assert_eq!((status, data[0], data[1]), (Ok(()), 192, 384));
    }
    // Neighbouring bytes are not the same byte; a shared half-word is.
    passes(
        "cvt.u64.u32 %rd4, %r1; add.s64 %rd5, %rd1, %rd4; st.global.u8 [%rd5], %r1;",
        1,
        64,
    );
    trips(
        "shr.u32 %r4, %r1, 1; mul.wide.u32 %rd4, %r4, 2; add.s64 %rd5, %rd1, %rd4; cvt.u16.u32 %h1, %r1; st.global.u16 [%rd5], %h1;",
        4,
        Check::GlobalRace,
    );
    // Everybody reads, then one writes: needs a barrier.
    let body = "ld.global.u32 %r4, [%rd1]; BARRIER setp.ne.u32 %p1, %r1, 0; @%p1 bra E; st.global.u32 [%rd1], %r4; E:";
    trips(&body.replace("BARRIER", ""), 64, Check::GlobalRace);
    passes(&body.replace("BARRIER", "bar.sync 0;"), 1, 64);
}

/// Two threads whose accesses differ in size lap over each other, or just do not.
#[test]
fn global_races_of_two_sizes() {
    let sizes = [
        (1, "u8"),
        (2, "u16"),
        (4, "u32"),
        (8, "u64"),
        (16, "v4.u32"),
    ];
    let store = |thread: u32, (size, ty): (u32, &str), offset: u32| {
        let values = if size == 16 {
            "{%r1, %r1, %r1, %r1}"
        } else {
            "%rd1"
        };
        format!("setp.eq.u32 %p1, %r1, {thread}; @%p1 st.global.{ty} [%rd1+{offset}], {values};\n")
    };
    for (i, &large) in sizes.iter().enumerate().skip(1) {
        for &small in &sizes[..i] {
            for [inside, outside] in [[16, 16 - small.0], [16 + large.0 - small.0, 16 + large.0]] {
                let stores = |at| [store(0, large, 16), store(1, small, at)];
                for [a, b] in [
                    stores(inside),
                    [store(1, small, inside), store(0, large, 16)],
                ] {
                    trips(&(a + &b), 2, Check::GlobalRace);
                }
                passes(&stores(outside).concat(), 1, 2);
            }
        }
    }
}

/// The last block to finish adds up what the others left: a fence, then an atomic ticket.
#[test]
fn ticket() {
    let body = "setp.ne.u32 %p1, %r1, 0; @%p1 bra E;
        mul.wide.u32 %rd4, %r2, 4; add.s64 %rd4, %rd1, %rd4; add.u32 %r4, %r2, 1; st.global.u32 [%rd4+64], %r4;
        FENCE
        atom.global.inc.u32 %r5, [%rd1], 1000;
        mov.u32 %r6, %nctaid.x; sub.u32 %r6, %r6, 1; setp.ne.u32 %p2, %r5, %r6; @%p2 bra E;
        FENCE
        mov.u32 %r7, 0; mov.u32 %r8, 0;
        L: mul.wide.u32 %rd5, %r7, 4; add.s64 %rd5, %rd1, %rd5; ld.global.u32 %r9, [%rd5+64]; add.u32 %r8, %r8, %r9;
        add.u32 %r7, %r7, 1; setp.le.u32 %p3, %r7, %r6; @%p3 bra L;
        st.global.u32 [%rd1+4], %r8;
        E:";
    for schedule in SCHEDULES {
        let good = kernel(&body.replace("FENCE", "membar.gl;"));
        let (data, report, status) = run(&good, config(10, 32), schedule, &[0u32; 32]);
        assert_eq!((status, data[1]), (Ok(()), 55), "{:?}", report.finding);
        let f = finding(
            &kernel(&body.replace("FENCE", "")),
            config(10, 32),
            schedule,
            32,
        )
        .unwrap();
        assert_eq!(f.check, Check::GlobalRace);
    }
}

/// All threads leave something, thread 0 takes the ticket for them: that needs a barrier before, and what the
/// last block's other warps read needs one after.
#[test]
fn ticket_of_a_block() {
    let body = "mad.lo.u32 %r4, %r2, %r3, %r1; mul.wide.u32 %rd4, %r4, 4; add.s64 %rd4, %rd1, %rd4; st.global.u32 [%rd4+64], %r1;
        .shared .u32 s; membar.gl; BEFORE setp.ne.u32 %p1, %r1, 0; @%p1 bra A;
        atom.global.add.u32 %r5, [%rd1], 1; st.shared.u32 [s], %r5;
        A: AFTER ld.shared.u32 %r5, [s]; mov.u32 %r6, %nctaid.x; sub.u32 %r6, %r6, 1; setp.ne.u32 %p2, %r5, %r6; @%p2 bra E;
        membar.gl; mul.wide.u32 %rd5, %r1, 4; add.s64 %rd5, %rd1, %rd5; ld.global.u32 %r7, [%rd5+64];
        mul.wide.u32 %rd6, %r3, 4; add.s64 %rd5, %rd5, %rd6; ld.global.u32 %r8, [%rd5+64];
        E:";
    let text =
        |before: &str, after: &str| kernel(&body.replace("BEFORE", before).replace("AFTER", after));
    for schedule in SCHEDULES {
        let clean = text("bar.sync 0;", "bar.sync 0;");
        let f = finding(&clean, config(4, 64), schedule, 1024);
        assert!(f.is_none(), "{schedule:?}: {}", f.unwrap());
        let f = finding(&text("", "bar.sync 0;"), config(4, 64), schedule, 1024).unwrap();
        assert_eq!(f.check, Check::GlobalRace, "{schedule:?}: {f}");
        let f = finding(&text("bar.sync 0;", ""), config(4, 64), schedule, 1024).unwrap();
        assert!(
            matches!(f.check, Check::SharedRace | Check::Uninitialised),
            "{schedule:?}: {f}"
        );
    }
}

#[test]
fn barriers() {
    trips(
        "setp.lt.u32 %p1, %r1, 16; @%p1 bra A; bar.sync 0; bra E; A: bar.sync 0; E:",
        32,
        Check::DivergentBarrier,
    );
    trips(
        "setp.lt.u32 %p1, %r1, 16; @%p1 bra E; bar.sync 0; E:",
        32,
        Check::BarrierAfterExit,
    );
    // Whole warps may leave.
    passes(
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra E; bar.sync 0; E:",
        1,
        64,
    );
    // A warp waits at a barrier of its own number: for ever.
    trips(
        "setp.lt.u32 %p1, %r1, 32; @%p1 bra A; bar.sync 1; bra E; A: bar.sync 0; E:",
        64,
        Check::Deadlock,
    );
}

#[test]
fn warp_instructions() {
    trips(
        "setp.lt.u32 %p1, %r1, 16; @%p1 bra E; shfl.sync.down.b32 %r4, %r1, 1, 31, 0xffff; E:",
        32,
        Check::MemberMask,
    );
    // Lanes that have returned are not waited for.
    passes(
        "setp.gt.u32 %p1, %r1, 15; @%p1 bra A; shfl.sync.down.b32 %r4, %r1, 0, 31, -1; bra E; A: exit; E:",
        1,
        32,
    );
    // Half of the warp waits for the other half, which has gone elsewhere.
    trips(
        "setp.lt.u32 %p1, %r1, 16; @%p1 bra E; shfl.sync.bfly.b32 %r4, %r1, 16, 31, 0xffff0000; E:",
        32,
        Check::InactiveLane,
    );
    trips(
        "setp.lt.u32 %p1, %r1, 16; @%p1 bra A; bar.warp.sync -1; bra E; A: bar.sync 0; E:",
        32,
        Check::Deadlock,
    );
    for schedule in SCHEDULES {
        let body = "shfl.sync.bfly.b32 %r4|%p1, %r1, 16, 31, -1; redux.sync.add.s32 %r5, %r1, -1;
            setp.lt.u32 %p2, %r1, 5; vote.sync.ballot.b32 %r6, %p2, -1; vote.sync.any.pred %p3, %p2, -1;
            selp.u32 %r7, 1, 0, %p3; shfl.sync.up.b32 %r8, %r1, 1, 0, -1; shfl.sync.idx.b32 %r9, %r1, 3, 0x1c1f, -1;
            mul.wide.u32 %rd4, %r1, 24; add.s64 %rd4, %rd1, %rd4;
            st.global.v2.u32 [%rd4], {%r4, %r5}; st.global.v2.u32 [%rd4+8], {%r6, %r7}; st.global.v2.u32 [%rd4+16], {%r8, %r9};";
        let (data, report, status) = run(&kernel(body), config(1, 32), schedule, &[0u32; 192]);
        assert_eq!(status, Ok(()), "{:?}", report.finding);
        for (i, d) in data.chunks(6).enumerate() {
            let i = i as u32;
            assert_eq!(d, [i ^ 16, 496, 31, 1, i.saturating_sub(1), (i & !3) + 3]);
        }
    }
}

#[test]
fn never_ends() {
    let f = finding(&kernel("L: bra L;"), config(1, 1), Schedule::InOrder, 4).unwrap();
    assert_eq!(f.check, Check::InstructionBudget);
    // Lanes that spin until another lane of their warp has written are no endless loop.
    let body = "setp.eq.u32 %p1, %r1, 31; @%p1 bra W; L: ld.volatile.global.u32 %r4, [%rd1]; setp.eq.u32 %p2, %r4, 0;
        @%p2 bra L; bra E; W: mov.u32 %r5, 1; st.volatile.global.u32 [%rd1], %r5; E:";
    passes(body, 1, 64);
}

/// What only a running kernel shows to be more than the emulator does: refused by name, and not as one of its bugs.
#[test]
fn unsupported() {
    let number = "mov.u32 %r4, 16; bar.sync %r4;";
    let local = ".local .align 4 .b8 l[4]; st.local.u32 [l], %r1; cvta.local.u64 %rd4, l; atom.add.u32 %r4, [%rd4], 1;";
    for (body, says) in [(number, "barrier 16"), (local, "atomic on local memory")] {
        trips(body, 32, Check::Unsupported);
        let (_, report, status) = run(&kernel(body), config(1, 32), Schedule::InOrder, &[0u32; 32]);
        assert_eq!(status, Err(CUresult::CUDA_ERROR_INVALID_PTX));
        assert!(report.finding.unwrap().message.contains(says));
    }
}

#[test]
fn compare_and_swap_loop() {
    // The usual float maximum: a plain read, then compare-and-swap until it holds.
    let body = "cvt.rn.f32.u32 %f1, %r1; ld.global.u32 %r4, [%rd1];
        L: mov.b32 %f2, %r4; max.f32 %f3, %f1, %f2; mov.b32 %r5, %f3; mov.u32 %r6, %r4;
        atom.global.cas.b32 %r4, [%rd1], %r6, %r5; setp.ne.u32 %p1, %r4, %r6; @%p1 bra L;";
    for schedule in SCHEDULES {
        let (data, report, status) = run(&kernel(body), config(3, 64), schedule, &[0u32; 4]);
        assert_eq!(
            (status, f32::from_bits(data[0])),
            (Ok(()), 63.0),
            "{:?}",
            report.finding
        );
    }
}

#[test]
fn launch_limits() {
    let (ctx, stream) = device(0);
    let f = function(&ctx, &kernel(""));
    let launch = |grid, block, shared| {
        let cfg = LaunchConfig {
            grid_dim: grid,
            block_dim: block,
            shared_mem_bytes: shared,
        };
        unsafe { stream.launch_builder(&f).arg(&0u64).launch(cfg) }
            .map(|_| ())
            .map_err(|e| e.0)
    };
    assert_eq!(launch((1, 1, 1), (1024, 1, 1), 48 << 10), Ok(()));
    assert_eq!(
        launch((1, 1, 1), (1024, 2, 1), 0),
        Err(CUresult::CUDA_ERROR_INVALID_VALUE)
    );
    assert_eq!(last_finding().unwrap().check, Check::LaunchLimits);
    assert_eq!(
        launch((1, 65536, 1), (1, 1, 1), 0),
        Err(CUresult::CUDA_ERROR_INVALID_VALUE)
    );
    assert_eq!(
        launch((0, 1, 1), (1, 1, 1), 0),
        Err(CUresult::CUDA_ERROR_INVALID_VALUE)
    );
    assert_eq!(
        launch((1, 1, 1), (32, 1, 1), (48 << 10) + 1),
        Err(CUresult::CUDA_ERROR_INVALID_VALUE)
    );
    let attribute = cudarc::driver::sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    f.set_attribute(attribute, 227 << 10).unwrap();
    assert_eq!(launch((1, 1, 1), (32, 1, 1), 227 << 10), Ok(()));
    assert!(f.set_attribute(attribute, 228 << 10).is_err());
}

#[test]
fn coverage_and_phases() {
    let body = "setp.gt.u32 %p1, %r1, 1000; @%p1 bra A; bra E; A: add.u32 %r4, %r1, 1; E:";
    let (_, report, _) = run(&kernel(body), config(1, 32), Schedule::InOrder, &[0u32; 4]);
    // The branch never taken, and what it leads to.
    assert_eq!(report.lines_not_executed.len(), 2);
    // A column of a 32×32 tile: every lane in one bank.
    let body = ".shared .align 4 .b8 s[4096]; mov.u32 %r4, s; shl.b32 %r5, %r1, STRIDE; add.u32 %r5, %r5, %r4; st.shared.u32 [%r5], %r1;";
    for (stride, phases) in [("2", 1), ("3", 2), ("7", 32)] {
        let text = kernel(&body.replace("STRIDE", stride));
        let (_, report, _) = run(&text, config(1, 32), Schedule::InOrder, &[0u32; 4]);
        assert_eq!(
            (report.shared.phases, report.shared.minimum_phases),
            (phases, 1)
        );
    }
}
