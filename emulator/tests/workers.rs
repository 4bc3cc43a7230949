//! The blocks of a launch on several threads: the same results, counts and findings as on one.
#![allow(clippy::undocumented_unsafe_blocks)] // Launches: the emulator survives any argument.

mod common;

use std::num::NonZeroUsize;

use common::{config, device, function, module};
use cuda_emulator::{Check, Finding, LaunchReport, Schedule, Settings, record, with_settings};
use cudarc::driver::PushKernelArg;

/// Words of a buffer.
const WORDS: usize = 1 << 12;

/// Launches blocks of 64 threads of an entry that takes two buffers; gives their contents and the report.
fn run(
    body: &str,
    blocks: u32,
    schedule: Schedule,
    workers: usize,
) -> (Vec<u32>, Vec<u32>, LaunchReport) {
    let (ctx, stream) = device(0);
    let text = module(
        "",
        ".param .u64 a, .param .u64 b",
        &format!(
            ".reg .pred %p<4>; .reg .b16 %h<4>; .reg .b32 %r<12>; .reg .b64 %rd<12>; .shared .align 16 .b8 s[2048];
             ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x;
             mad.lo.u32 %r3, %r2, 64, %r1; {body}"
        ),
    );
    let f = function(&ctx, &text);
    let data: Vec<u32> = (0..WORDS as u32).map(|i| i * i).collect();
    let a = stream.clone_htod(&data).unwrap();
    let b = stream.clone_htod(&data).unwrap();
    let settings = Settings {
        schedule,
        workers: NonZeroUsize::new(workers),
        ..Settings::default()
    };
    let (status, mut reports) = with_settings(settings, || {
        record(|| unsafe {
            stream
                .launch_builder(&f)
                .arg(&a)
                .arg(&b)
                .launch(config(blocks, 64))
        })
    });
    let report = reports.pop().unwrap();
    assert_eq!(status.is_err(), report.finding.is_some());
    let read = |buffer| stream.clone_dtoh(buffer).unwrap();
    (read(&a), read(&b), report)
}

fn finding(body: &str, blocks: u32, schedule: Schedule, workers: usize) -> Finding {
    run(body, blocks, schedule, workers)
        .2
        .finding
        .expect("a finding")
}

/// Loads and stores of several widths, some of them uneven, conflicts of banks, atomics in shared memory, and
/// lanes and blocks of different length.
const COUNTED: &str = "
    mul.wide.u32 %rd3, %r3, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
    setp.eq.u32 %p1, %r1, 0; @!%p1 bra READY; mov.u32 %r5, 0; st.shared.u32 [s+512], %r5;
    READY: bar.sync 0;
    mov.u32 %r4, s; mad.lo.u32 %r4, %r1, 8, %r4; ld.global.u32 %r5, [%rd4]; st.shared.u32 [%r4], %r5;
    red.shared.add.u32 [s+512], %r1;
    and.b32 %r6, %r2, 7; mov.u32 %r7, 0;
    LOOP: add.u32 %r7, %r7, %r5; sub.u32 %r6, %r6, 1; setp.ge.s32 %p2, %r6, 0; @%p2 bra LOOP;
    ld.global.nc.u16 %h1, [%rd2+16000]; cvt.u32.u16 %r8, %h1; add.u32 %r7, %r7, %r8;
    setp.lt.u32 %p3, %r1, 16; mul.lo.u32 %r9, %r1, 12; mul.wide.u32 %rd6, %r9, 1; add.s64 %rd6, %rd4, %rd6;
    @%p3 ld.global.v4.u32 {%r8, %r9, %r10, %r11}, [%rd6];
    bar.sync 0; ld.shared.u32 %r8, [s+512]; add.u32 %r7, %r7, %r8; @%p3 st.global.u32 [%rd5], %r7;";

/// All of a report, but for the addresses of the buffers.
fn counts(report: &LaunchReport) -> String {
    let mut report = report.clone();
    for (i, buffer) in (0..).zip(&mut report.buffers) {
        buffer.address = i;
    }
    format!("{report:#?}")
}

#[test]
fn counts_are_those_of_one() {
    let blocks = 41;
    for schedule in [Schedule::InOrder, Schedule::Reversed] {
        let (a, b, alone) = run(COUNTED, blocks, schedule, 1);
        assert!(alone.finding.is_none(), "{}", alone.finding.unwrap());
        assert_eq!(alone.buffers.len(), 2);
        assert!(alone.shared.phases > alone.shared.minimum_phases);
        for (i, block) in (0..).step_by(64).zip(0..blocks) {
            let sum = (0..64).sum::<u32>() + (4000 * 4000) % (1 << 16);
            assert_eq!(b[i], (1 + block % 8) * a[i] + sum, "block {block}");
        }
        for workers in [2, 3, 8, 100] {
            let (same_a, same_b, report) = run(COUNTED, blocks, schedule, workers);
            assert!(same_a == a && same_b == b);
            assert_eq!(counts(&report), counts(&alone));
        }
    }
}

/// One word that two of the blocks share, after some time that lets all workers begin.
#[test]
fn races_between_workers() {
    let rounds = 50;
    // Everybody's own word, but for block 5, which takes that of block 2.
    let own = |last: &str| {
        format!(
            "mov.u32 %r5, 200; LOOP: sub.u32 %r5, %r5, 1; setp.gt.s32 %p2, %r5, 0; @%p2 bra LOOP;
             setp.eq.u32 %p1, %r2, 5; selp.u32 %r4, 2, %r2, %p1; mad.lo.u32 %r4, %r4, 64, %r1;
             mul.wide.u32 %rd3, %r4, 4; add.s64 %rd4, %rd1, %rd3; {last}"
        )
    };
    for (last, want) in [
        ("st.global.u32 [%rd4], %r1;", Check::GlobalRace),
        (
            "ld.global.u32 %r5, [%rd4]; @!%p1 st.global.u32 [%rd4], %r1;",
            Check::GlobalRace,
        ),
        (
            "ld.global.u32 %r5, [%rd4]; @%p1 st.global.u32 [%rd4], %r1;",
            Check::GlobalRace,
        ),
        (
            "@!%p1 st.global.u32 [%rd4], %r1; @%p1 st.global.u8 [%rd4+3], %r1;",
            Check::GlobalRace,
        ),
        (
            "@!%p1 ld.global.nc.u32 %r5, [%rd4]; @%p1 st.global.u16 [%rd4], %r1;",
            Check::NonCoherent,
        ),
    ] {
        for round in 0..rounds {
            for schedule in [Schedule::InOrder, Schedule::Reversed] {
                let f = finding(&own(last), 8, schedule, 2 + round % 3);
                assert_eq!(f.check, want, "{last}: {f}");
                assert!([2, 5].contains(&f.block.0), "{last}: {f}");
            }
        }
    }
}

/// Blocks 7, 11 and 30 write beyond the end; the later ones sooner.
#[test]
fn the_first_finding_counts() {
    let body = "setp.eq.u32 %p1, %r2, 7; setp.eq.or.u32 %p1, %r2, 11, %p1; setp.eq.or.u32 %p1, %r2, 30, %p1;
        mov.u32 %r5, 40; sub.u32 %r5, %r5, %r2; mul.lo.u32 %r5, %r5, 16;
        LOOP: sub.u32 %r5, %r5, 1; setp.gt.s32 %p2, %r5, 0; @%p2 bra LOOP;
        @%p1 st.global.u32 [%rd1+16384], %r1;";
    for workers in 1..6 {
        for _ in 0..20 {
            for (schedule, block) in [(Schedule::InOrder, 7), (Schedule::Reversed, 30)] {
                let f = finding(body, 40, schedule, workers);
                assert_eq!(
                    (f.check, f.block),
                    (Check::OutOfBounds, (block, 0, 0)),
                    "{f}"
                );
            }
        }
    }
}

/// A kernel whose blocks wait for each other runs on one thread, in the order of the schedule, whatever is asked for.
#[test]
fn tickets_are_drawn_in_order() {
    let body =
        "setp.ne.u32 %p1, %r1, 0; @%p1 bra E; mul.wide.u32 %rd3, %r2, 4; add.s64 %rd3, %rd2, %rd3;
        atom.global.inc.u32 %r4, [%rd1], 1000; st.global.u32 [%rd3], %r4; E:";
    for _ in 0..20 {
        let (_, tickets, report) = run(body, 60, Schedule::InOrder, 4);
        assert!(report.finding.is_none(), "{}", report.finding.unwrap());
        assert!((0..60).eq(tickets[..60].iter().copied()), "{tickets:?}");
    }
}
