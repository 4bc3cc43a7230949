//! Clusters: a kernel whose blocks exchange sums, right under every schedule; bugs planted into it, each reported
//! by the right check; and the limits of a launch.
#![allow(clippy::undocumented_unsafe_blocks)] // Launches: the emulator survives any argument.

mod common;

use std::num::NonZeroUsize;

use common::{SCHEDULES, config, device, function, launch_clusters};
use cuda_emulator::{Check, Finding, Schedule, Settings, last_finding, record, with_settings};
use cudarc::driver::sys::CUresult;
use cudarc::driver::{DevicePtr, DriverError};

/// Each element of a row becomes the sum of the row less the element. A cluster does the rows one after the
/// other, 64 elements a block: its sum goes to a slot in every block, whose mbarrier is told of the bytes.
const KERNEL: &str = r#"
.version 8.1
.target sm_90
.address_size 64
.visible .entry k(.param .u64 data, .param .u32 rows)
{
.reg .pred %p<10>; .reg .b32 %r<40>; .reg .b64 %rd<10>;
.shared .align 4 .b8 s[256];
.shared .align 16 .b8 slots[64];
.shared .align 8 .b8 bar[8];
.shared .align 4 .b8 all[4];
ld.param.u64 %rd1, [data]; ld.param.u32 %r1, [rows];
mov.u32 %r2, %tid.x; mov.u32 %r3, %cluster_ctarank; mov.u32 %r4, %cluster_nctarank;
mov.u32 %r5, %clusterid.x; mov.u32 %r6, %nclusterid.x;
setp.ne.u32 %p1, %r2, 0;
mov.u32 %r7, bar; mov.u32 %r8, slots; mov.u32 %r9, 0;
@%p1 bra READY;
mbarrier.init.shared::cta.b64 [%r7], 1; // init
fence.mbarrier_init.release.cluster; // publish
READY:
barrier.cluster.arrive.release.aligned; // begin
ROW:
setp.ge.u32 %p2, %r5, %r1; @%p2 bra DONE;
mad.lo.u32 %r10, %r5, %r4, %r3; shl.b32 %r10, %r10, 6; add.u32 %r10, %r10, %r2;
mul.wide.u32 %rd2, %r10, 4; add.s64 %rd2, %rd1, %rd2;
ld.global.u32 %r11, [%rd2];
mov.u32 %r12, s; shl.b32 %r13, %r2, 2; add.u32 %r13, %r12, %r13; st.shared.u32 [%r13], %r11;
bar.sync 0;
barrier.cluster.wait.acquire.aligned; // peers
@%p1 bra MERGED;
mov.u32 %r14, 0; mov.u32 %r15, 0;
SUM:
ld.shared.u32 %r16, [%r12]; add.u32 %r14, %r14, %r16; add.u32 %r12, %r12, 4;
add.u32 %r15, %r15, 1; setp.lt.u32 %p3, %r15, 64; @%p3 bra SUM;
shl.b32 %r17, %r4, 4; // expected
mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%r7], %r17;
mov.u32 %r18, 0; shl.b32 %r19, %r3, 4; add.u32 %r19, %r8, %r19;
SEND:
mapa.shared::cluster.u32 %r20, %r19, %r18; // slot
mapa.shared::cluster.u32 %r21, %r7, %r18; // its mbarrier
st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%r20], {%r14, %r3, %r5, %r2}, [%r21];
add.u32 %r18, %r18, 1; setp.lt.u32 %p3, %r18, %r4; @%p3 bra SEND; // next peer
WAIT:
mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p4, [%r7], %r9; // wait
@!%p4 bra WAIT; // again
mov.u32 %r22, 0; mov.u32 %r18, 0; mov.u32 %r23, %r8;
MERGE:
ld.shared.u32 %r24, [%r23]; add.u32 %r22, %r22, %r24; add.u32 %r23, %r23, 16;
add.u32 %r18, %r18, 1; setp.lt.u32 %p3, %r18, %r4; @%p3 bra MERGE;
st.shared.u32 [all], %r22;
MERGED:
bar.sync 0;
barrier.cluster.arrive.release.aligned; // merged
ld.shared.u32 %r25, [all]; sub.u32 %r25, %r25, %r11; st.global.u32 [%rd2], %r25;
xor.b32 %r9, %r9, 1; // flip
add.u32 %r5, %r5, %r6; bra ROW;
DONE:
barrier.cluster.wait.acquire.aligned; // end
ret;
}
"#;

/// Blocks of a cluster; rows, of which a cluster does three and the other four.
const CLUSTER: u32 = 4;
const ROWS: usize = 7;
const COLS: usize = 64 * CLUSTER as usize;

fn element(i: usize) -> u32 {
    (i * 37 % 101) as u32
}

/// Runs a text on two clusters; gives the data and the finding.
fn run(text: &str, schedule: Schedule) -> (Vec<u32>, Option<Finding>) {
    let (ctx, stream) = device(0);
    let f = function(&ctx, text);
    // And a word of each block for each row.
    let data: Vec<u32> = (0..ROWS * (COLS + CLUSTER as usize)).map(element).collect();
    let buffer = stream.clone_htod(&data).unwrap();
    let (mut address, mut rows) = (buffer.device_ptr(&stream).0, ROWS as u32);
    let mut params = [(&raw mut address).cast(), (&raw mut rows).cast()];
    let settings = Settings {
        schedule,
        instruction_budget: 1 << 16,
        workers: NonZeroUsize::new(2),
        ..Settings::default()
    };
    let (status, reports) = with_settings(settings, || {
        record(|| launch_clusters(&f, &stream, CLUSTER, config(2 * CLUSTER, 64), &mut params))
    });
    let finding = reports[0].finding.clone();
    assert_eq!(status.is_err(), finding.is_some());
    let mut data = stream.clone_dtoh(&buffer).unwrap();
    data.truncate(ROWS * COLS);
    (data, finding)
}

/// The rows take turns at two sets of slots, and no barrier of the cluster stands between them: who has received the
/// stores of the row before from all knows that all have read those of the row before that.
fn by_turns() -> String {
    let mut text = KERNEL.to_string();
    for (from, to) in [
        (".align 16 .b8 slots[64]", ".align 128 .b8 slots[128]"),
        (".align 8 .b8 bar[8]", ".align 16 .b8 bar[16]"),
        ("mov.u32 %r9, 0;", "mov.u32 %r9, 0; mov.u32 %r30, 0;"),
        (
            "mbarrier.init.shared::cta.b64 [%r7], 1; // init",
            "mbarrier.init.shared::cta.b64 [%r7], 1; mbarrier.init.shared::cta.b64 [%r7+8], 1;",
        ),
        (
            PEERS,
            "setp.ne.u32 %p8, %r30, 0; @%p8 bra MET; barrier.cluster.wait.acquire.aligned; MET:",
        ),
        (MERGED, ""),
        (
            "xor.b32 %r9, %r9, 1; // flip",
            "xor.b32 %r7, %r7, 8; xor.b32 %r8, %r8, 64; // turn
            add.u32 %r30, %r30, 1; shr.u32 %r9, %r30, 1; and.b32 %r9, %r9, 1;",
        ),
        (
            END,
            "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;",
        ),
    ] {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        text = text.replace(from, to);
    }
    text
}

#[test]
fn blocks_of_a_cluster_exchange_their_sums() {
    exchanges_sums(KERNEL);
}

#[test]
fn blocks_of_a_cluster_exchange_their_sums_by_turns() {
    exchanges_sums(&by_turns());
    // One set of slots for all turns, and one of mbarriers.
    for turn in ["xor.b32 %r8, %r8, 64;", "xor.b32 %r7, %r7, 8;"] {
        let text = by_turns().replace(turn, "");
        for schedule in SCHEDULES {
            let (_, finding) = run(&text, schedule);
            assert!(finding.is_some(), "{turn} {schedule:?}");
        }
    }
}

fn exchanges_sums(text: &str) {
    for schedule in SCHEDULES.into_iter().chain((3..40).map(Schedule::Seeded)) {
        let (data, finding) = run(text, schedule);
        assert!(finding.is_none(), "{schedule:?}: {}", finding.unwrap());
        for (row, data) in data.chunks(COLS).enumerate() {
            let old = |i| element(row * COLS + i);
            let sum: u32 = (0..COLS).map(old).sum();
            for (i, &d) in data.iter().enumerate() {
                assert_eq!(d, sum - old(i), "{schedule:?}, row {row}, element {i}");
            }
        }
    }
}

/// A cluster's barrier orders its own reads before a write, and not those of another cluster.
#[test]
fn readers_of_two_clusters() {
    let text = |owner: &str| {
        format!(
            ".version 8.1 .target sm_90 .address_size 64
            .visible .entry k(.param .u64 p) {{
            .reg .pred %p<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>;
            ld.param.u64 %rd1, [p]; mov.u32 %r1, {owner}; mad.wide.u32 %rd1, %r1, 4, %rd1;
            ld.global.u32 %r2, [%rd1];
            barrier.cluster.arrive; barrier.cluster.wait;
            mov.u32 %r3, %cluster_ctarank; mov.u32 %r4, %tid.x; or.b32 %r3, %r3, %r4; setp.ne.u32 %p1, %r3, 0;
            @%p1 exit; st.global.u32 [%rd1], %r2; }}"
        )
    };
    let (ctx, stream) = device(0);
    let buffer = stream.clone_htod(&[0u32; 4]).unwrap();
    let mut address = buffer.device_ptr(&stream).0;
    for schedule in SCHEDULES.into_iter().chain((3..40).map(Schedule::Seeded)) {
        for (owner, want) in [("%clusterid.x", None), ("0", Some(Check::GlobalRace))] {
            let f = function(&ctx, &text(owner));
            let settings = Settings {
                schedule,
                workers: NonZeroUsize::new(2),
                ..Settings::default()
            };
            let status = with_settings(settings, || {
                launch_clusters(
                    &f,
                    &stream,
                    2,
                    config(4, 33),
                    &mut [(&raw mut address).cast()],
                )
            });
            let finding = last_finding();
            assert_eq!(status.is_err(), finding.is_some());
            let check = finding.as_ref().map(|f| f.check);
            assert_eq!(check, want, "{schedule:?}: {finding:?}");
        }
    }
}

/// Registers, addresses and phases, in numbers: each block of a cluster sends to the next one, the last to the
/// first.
#[test]
fn numbers_of_a_ring() {
    let text = ".version 8.1 .target sm_90 .address_size 64
        .visible .entry k(.param .u64 p) {
        .reg .pred %p<9>; .reg .b32 %r<19>; .reg .b64 %rd<9>;
        .shared .align 8 .b8 bars[16]; .shared .align 4 .b8 box[8];
        ld.param.u64 %rd1, [p]; mov.u32 %r1, %ctaid.x; mad.wide.u32 %rd1, %r1, 32, %rd1;
        mov.u32 %r2, %cluster_ctarank; mov.u32 %r3, %cluster_nctarank; mov.u32 %r4, %clusterid.x; mov.u32 %r5, %nclusterid.x;
        st.global.v4.u32 [%rd1], {%r2, %r3, %r4, %r5};
        mbarrier.init.b64 [bars+8], 1; fence.mbarrier_init.release.cluster;
        mbarrier.try_wait.parity.shared.b64 %p1, [bars+8], 1; selp.u32 %r6, 1, 0, %p1;
        barrier.cluster.arrive; barrier.cluster.wait;
        add.u32 %r7, %r2, 1; rem.u32 %r7, %r7, %r3; mov.u32 %r8, box; mov.u32 %r9, bars; add.u32 %r10, %r1, 1000;
        mapa.shared::cluster.u32 %r8, %r8, %r7; mapa.shared::cluster.u32 %r9, %r9, %r7;
        mbarrier.arrive.expect_tx.b64 _, [bars+8], 4;
        st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%r8+4], %r10, [%r9+8];
        L: mbarrier.try_wait.parity.acquire.cta.b64 %p2, [bars+8], 0; @!%p2 bra L;
        ld.shared.u32 %r11, [box+4]; st.global.v2.u32 [%rd1+16], {%r6, %r11};
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        ret; }";
    let (ctx, stream) = device(0);
    let f = function(&ctx, text);
    for schedule in SCHEDULES {
        let buffer = stream.alloc_zeros::<u32>(6 * 8).unwrap();
        let mut address = buffer.device_ptr(&stream).0;
        let settings = Settings {
            schedule,
            ..Settings::default()
        };
        let mut params = [(&raw mut address).cast()];
        let status = with_settings(settings, || {
            launch_clusters(&f, &stream, 3, config(6, 1), &mut params)
        });
        assert_eq!(status, Ok(()), "{schedule:?}");
        let data = stream.clone_dtoh(&buffer).unwrap();
        for (block, words) in (0..).zip(data.chunks(8)) {
            let (rank, cluster) = (block % 3, block / 3);
            let sender = 3 * cluster + (rank + 2) % 3;
            assert_eq!(words, [rank, 3, cluster, 2, 1, 1000 + sender, 0, 0]);
        }
    }
}

/// A bug: what is replaced by what, what finds it, and what the report says of it if it is the first check.
struct Bug {
    name: &'static str,
    edits: &'static [(&'static str, &'static str)],
    /// Which of these come first depends on the schedule.
    checks: &'static [Check],
    says: &'static str,
}

const BEGIN: &str = "barrier.cluster.arrive.release.aligned; // begin";
const PEERS: &str = "barrier.cluster.wait.acquire.aligned; // peers";
const MERGED: &str = "barrier.cluster.arrive.release.aligned; // merged";
const END: &str = "barrier.cluster.wait.acquire.aligned; // end";

const BUGS: &[Bug] = &[
    Bug {
        name: "what a peer wrote before it sent is taken for published",
        edits: &[
            (
                "shl.b32 %r17, %r4, 4; // expected",
                "shl.b32 %r17, %r4, 4;
                mad.lo.u32 %r33, %r5, %r4, %r3; add.u32 %r33, %r33, 1792;
                mul.wide.u32 %rd5, %r33, 4; add.s64 %rd5, %rd1, %rd5; st.global.u32 [%rd5], %r14;",
            ),
            (
                "@!%p4 bra WAIT; // again",
                "@!%p4 bra WAIT;
                xor.b32 %r34, %r3, 1; mad.lo.u32 %r34, %r5, %r4, %r34; add.u32 %r34, %r34, 1792;
                mul.wide.u32 %rd6, %r34, 4; add.s64 %rd6, %rd1, %rd6; ld.global.u32 %r35, [%rd6];",
            ),
        ],
        checks: &[Check::GlobalRace],
        says: "with nothing between them that orders the two",
    },
    Bug {
        name: "there is no barrier of the cluster",
        edits: &[(BEGIN, ""), (PEERS, ""), (MERGED, ""), (END, "")],
        checks: &[Check::Mbarrier, Check::SharedRace],
        says: "the mbarrier at shared address",
    },
    Bug {
        name: "slots are used again before all have read them",
        edits: &[
            (
                PEERS,
                "setp.ge.u32 %p8, %r5, %r6; @%p8 bra MET; barrier.cluster.wait.acquire.aligned; MET:",
            ),
            (MERGED, ""),
            (END, ""),
        ],
        checks: &[Check::SharedRace],
        says: "written by an asynchronous store of a block of the cluster",
    },
    Bug {
        name: "arrives twice",
        edits: &[(
            BEGIN,
            "barrier.cluster.arrive.release.aligned; barrier.cluster.arrive;",
        )],
        checks: &[Check::ClusterBarrier],
        says: "arrives again without having waited",
    },
    Bug {
        name: "waits without having arrived",
        edits: &[(BEGIN, "")],
        checks: &[Check::ClusterBarrier],
        says: "waits without having arrived",
    },
    Bug {
        name: "one thread of a block does not arrive",
        edits: &[(
            BEGIN,
            "setp.eq.u32 %p8, %r2, 63; @%p8 bra ROW; barrier.cluster.arrive.release;",
        )],
        checks: &[Check::ClusterBarrier, Check::Deadlock],
        says: "waits without having arrived",
    },
    Bug {
        name: "a peer leaves when it has sent",
        edits: &[("WAIT:", "setp.eq.u32 %p8, %r3, 1; @%p8 exit; WAIT:")],
        checks: &[Check::BarrierAfterExit],
        says: "of the same warp has returned",
    },
    Bug {
        name: "a peer leaves early, and all of it",
        edits: &[(
            PEERS,
            "barrier.cluster.wait.acquire.aligned; setp.eq.u32 %p8, %r3, 1; @%p8 exit;",
        )],
        checks: &[Check::PeerExited, Check::Mbarrier],
        says: "which has returned",
    },
    Bug {
        name: "a peer leaves without having waited for what it is sent",
        edits: &[
            (
                PEERS,
                "barrier.cluster.wait.acquire.aligned; setp.eq.u32 %p8, %r3, 1; setp.eq.and.u32 %p7, %r2, 0, %p8; xor.pred %p6, %p8, %p7; @%p6 exit;",
            ),
            ("WAIT:", "@%p7 exit; WAIT:"),
        ],
        checks: &[Check::PeerExited],
        says: "",
    },
    Bug {
        name: "more bytes are expected than come",
        edits: &[(
            "shl.b32 %r17, %r4, 4; // expected",
            "shl.b32 %r17, %r4, 4; add.u32 %r17, %r17, 4;",
        )],
        checks: &[Check::Deadlock],
        says: "lacks 0 arrivals and 4 bytes",
    },
    Bug {
        name: "fewer bytes are expected than come",
        edits: &[(
            "shl.b32 %r17, %r4, 4; // expected",
            "add.u32 %r17, %r4, -1; shl.b32 %r17, %r17, 4;",
        )],
        // Where the others' come first, the phase never completes.
        checks: &[
            Check::Deadlock,
            Check::SharedRace,
            Check::Uninitialised,
            Check::Mbarrier,
        ],
        says: "lacks 0 arrivals and -16 bytes",
    },
    Bug {
        name: "a second arrival",
        edits: &[(
            "mov.u32 %r18, 0; shl.b32 %r19",
            "mbarrier.arrive.expect_tx.shared.b64 _, [%r7], 0; mov.u32 %r18, 0; shl.b32 %r19",
        )],
        checks: &[Check::Mbarrier],
        says: "more than the 1 arrivals of a phase",
    },
    Bug {
        name: "nobody waits for the bytes",
        edits: &[
            (
                "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p4, [%r7], %r9; // wait",
                "",
            ),
            ("@!%p4 bra WAIT; // again", ""),
        ],
        checks: &[Check::SharedRace, Check::Uninitialised],
        says: "`slots`",
    },
    Bug {
        name: "the parity is not flipped",
        edits: &[("xor.b32 %r9, %r9, 1; // flip", "")],
        checks: &[Check::SharedRace, Check::Mbarrier],
        says: "`slots`",
    },
    Bug {
        name: "the mbarrier is not initialised",
        edits: &[("mbarrier.init.shared::cta.b64 [%r7], 1; // init", "")],
        checks: &[Check::Mbarrier],
        says: "nobody initialised it",
    },
    Bug {
        name: "its initialisation is not published",
        edits: &[("fence.mbarrier_init.release.cluster; // publish", "")],
        checks: &[Check::Mbarrier],
        says: "fence.mbarrier_init",
    },
    Bug {
        name: "one peer too many",
        edits: &[(
            "setp.lt.u32 %p3, %r18, %r4; @%p3 bra SEND; // next peer",
            "setp.le.u32 %p3, %r18, %r4; @%p3 bra SEND;",
        )],
        checks: &[Check::OutOfBounds],
        says: "of rank 4 of a cluster of 4: no such block",
    },
    Bug {
        name: "the bytes are announced at home",
        edits: &[(
            "mapa.shared::cluster.u32 %r21, %r7, %r18; // its mbarrier",
            "mov.u32 %r21, %r7;",
        )],
        checks: &[Check::OutOfBounds],
        says: "the mbarrier is not of that block",
    },
    Bug {
        name: "one slot too few",
        edits: &[(".b8 slots[64]", ".b8 slots[48]")],
        checks: &[Check::OutOfBounds],
        says: "outside of every variable",
    },
    Bug {
        name: "slots of 8 bytes",
        edits: &[("shl.b32 %r19, %r3, 4;", "shl.b32 %r19, %r3, 3;")],
        checks: &[Check::Misaligned],
        says: "not a multiple of its size",
    },
];

#[test]
fn every_planted_bug_is_caught() {
    let mut missed = Vec::new();
    for bug in BUGS {
        let mut text = KERNEL.to_string();
        for (from, to) in bug.edits {
            assert_eq!(text.matches(from).count(), 1, "{}: {from}", bug.name);
            text = text.replace(from, to);
        }
        for schedule in SCHEDULES.into_iter().chain((3..12).map(Schedule::Seeded)) {
            let (_, finding) = run(&text, schedule);
            let caught = finding.as_ref().is_some_and(|f| {
                let first = f.check == bug.checks[0];
                bug.checks.contains(&f.check) && (!first || f.message.contains(bug.says))
            });
            if !caught {
                missed.push(format!("{}, {schedule:?}: {finding:?}", bug.name));
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// A thread that asks once may be told no: some schedule does so.
#[test]
fn a_wait_that_is_not_repeated_is_caught_by_some_schedule() {
    let text = KERNEL.replace("@!%p4 bra WAIT; // again", "");
    let findings = (0..8).filter_map(|seed| run(&text, Schedule::Seeded(seed)).1);
    let checks: Vec<_> = findings.map(|f| f.check).collect();
    assert!(checks.contains(&Check::SharedRace), "{checks:?}");
}

#[test]
fn limits_of_clusters() {
    let launch = |ordinal, text: &str, cluster, blocks| {
        let (ctx, stream) = device(ordinal);
        let f = function(&ctx, text);
        launch_clusters(&f, &stream, cluster, config(blocks, 672), &mut [])
    };
    let text = ".version 7.8 .target sm_80 .address_size 64 .visible .entry k() { ret; }";
    assert_eq!(launch(0, text, 8, 16), Ok(()));
    assert_eq!(launch(2, text, 4, 16), Ok(()));
    let refused = [
        (0, 8, 12, CUresult::CUDA_ERROR_INVALID_VALUE),
        (0, 16, 16, CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE),
        (0, 0, 16, CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE),
        (1, 2, 16, CUresult::CUDA_ERROR_NOT_SUPPORTED),
        // Of 3 blocks a multiprocessor, 6 are there at once.
        (2, 8, 16, CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE),
    ];
    for (ordinal, cluster, blocks, want) in refused {
        assert_eq!(launch(ordinal, text, cluster, blocks), Err(want));
        assert_eq!(last_finding().unwrap().check, Check::LaunchLimits);
    }
    // An A100 does not take the text either.
    let (ctx, _) = device(1);
    let error = ctx.load_module(cudarc::nvrtc::Ptx::from_src(KERNEL)).err();
    let invalid = DriverError(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    assert_eq!(error, Some(invalid));
}
