//! Warps, barriers and control flow.

use crate::common::SCHEDULES;
use crate::words;

#[test]
fn warp_and_block_instructions() {
    for schedule in SCHEDULES {
        // Votes and reductions over the lanes of a mask.
        let body = "setp.lt.u32 %p1, %r1, 8; @!%p1 bra HIGH;
            setp.ge.u32 %p2, %r1, 0; vote.sync.all.pred %p3, %p2, 0xff; setp.eq.u32 %p2, %r1, 3;
            vote.sync.any.pred %p4, %p2, 0xff; vote.sync.uni.pred %p5, %p2, 0xff; vote.sync.all.pred %p6, !%p2, 0xff; bra OUT;
            HIGH: setp.lt.u32 %p2, %r1, 0; vote.sync.all.pred %p3, !%p2, 0xffffff00; vote.sync.any.pred %p4, %p2, 0xffffff00;
            vote.sync.uni.pred %p5, %p2, 0xffffff00; vote.sync.all.pred %p6, %p2, 0xffffff00;
            OUT: selp.b32 %r5, 1, 0, %p3; selp.b32 %r6, 2, 0, %p4; selp.b32 %r7, 4, 0, %p5; selp.b32 %r8, 8, 0, %p6;
            or.b32 %r5, %r5, %r6; or.b32 %r7, %r7, %r8; or.b32 %r5, %r5, %r7; vote.sync.ballot.b32 %r6, %p1, -1;
            st.global.v2.u32 [%rd1], {%r5, %r6};";
        for (i, w) in words(body, 32, schedule)[..32].iter().enumerate() {
            assert_eq!(
                (*w as u32, w >> 32),
                (if i < 8 { 3 } else { 5 }, 0xff),
                "{schedule:?} {i}"
            );
        }
        let v = |i: u32| i.wrapping_mul(0x9e37_79b9);
        type Fold = (&'static str, fn(u32, u32) -> u32);
        let folds: [Fold; 9] = [
            ("add.u32", u32::wrapping_add),
            ("add.s32", u32::wrapping_add),
            ("min.u32", u32::min),
            ("max.u32", u32::max),
            ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
            ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
            ("and.b32", |a, b| a & b),
            ("or.b32", |a, b| a | b),
            ("xor.b32", |a, b| a ^ b),
        ];
        for (op, f) in folds {
            let body = format!(
                "mul.lo.u32 %r5, %r1, 0x9e3779b9; setp.lt.u32 %p1, %r1, 5; @%p1 bra LOW;
                redux.sync.{op} %r6, %r5, 0xffffffe0; bra OUT; LOW: redux.sync.{op} %r6, %r5, 31; OUT: mov.u32 %r7, 0;
                st.global.v2.u32 [%rd1], {{%r6, %r7}};"
            );
            for (i, w) in words(&body, 32, schedule)[..32].iter().enumerate() {
                let part = if i < 5 { 0..5 } else { 5..32 };
                assert_eq!(
                    *w as u32,
                    part.map(v).reduce(f).unwrap(),
                    "{op} {schedule:?}"
                );
            }
        }
        // Shuffles in segments of 8: value and whether the source was inside.
        for (mode, amount) in [
            ("up", 3u32),
            ("down", 3),
            ("bfly", 5),
            ("bfly", 9),
            ("idx", 2),
            ("idx", 13),
        ] {
            let clamp = if mode == "up" { 0x1800 } else { 0x1807 };
            let body = format!(
                "shfl.sync.{mode}.b32 %r5|%p1, %r1, {amount}, {clamp}, -1; selp.u32 %r6, 1, 0, %p1; st.global.v2.u32 [%rd1], {{%r5, %r6}};"
            );
            for (i, w) in words(&body, 32, schedule)[..32].iter().enumerate() {
                let i = i as u32;
                let first = i & 24;
                let from = match mode {
                    "up" => i.checked_sub(amount).filter(|j| *j >= first),
                    "down" => Some(i + amount).filter(|j| *j <= first + 7),
                    "bfly" => Some(i ^ amount).filter(|j| *j <= first + 7),
                    _ => Some(first | amount & 7),
                };
                assert_eq!(
                    *w,
                    u64::from(from.unwrap_or(i)) | u64::from(from.is_some()) << 32,
                    "{mode} {amount} lane {i}"
                );
            }
        }
        // Barriers that count, and barriers of part of the block with those who do not wait.
        let body = "setp.lt.u32 %p1, %r1, 40; bar.red.popc.u32 %r5, 0, %p1; bar.red.and.pred %p2, 1, %p1; bar.red.or.pred %p3, 2, 96, %p1;
            barrier.cta.red.popc.aligned.u32 %r6, 0, !%p1; selp.u32 %r7, 1, 0, %p2; selp.u32 %r8, 2, 0, %p3;
            mad.lo.u32 %r5, %r5, 1000, %r6; add.u32 %r7, %r7, %r8; st.global.v2.u32 [%rd1], {%r5, %r7}; barrier.sync 3;";
        for w in &words(body, 96, schedule)[..96] {
            assert_eq!(*w, 2 << 32 | 40_056, "{schedule:?}");
        }
        // Warp 0 produces and does not wait; warp 1 consumes.
        let body = "setp.gt.u32 %p1, %r1, 31; @%p1 bra CONSUME; cvt.u64.u32 %rd2, %r1; st.shared.u64 [%r3], %rd2; bar.arrive 1, 64; bra OUT;
            CONSUME: bar.sync 1, 64; ld.shared.u64 %rd2, [%r3+-256]; st.global.u64 [%rd1], %rd2; OUT:";
        for (i, w) in words(body, 64, schedule)[32..64].iter().enumerate() {
            assert_eq!(*w, i as u64, "{schedule:?}");
        }
        // A table of labels; what changes nothing.
        let body = "TABLE: .branchtargets A, B, C; griddepcontrol.wait; griddepcontrol.launch_dependents; fence.acq_rel.gpu; membar.sys;
            rem.u32 %r5, %r1, 3; brx.idx %r5, TABLE; A: mov.u64 %rd2, 10; bra OUT; B: mov.u64 %rd2, 11; bra.uni OUT;
            C: mov.u64 %rd2, 12; OUT: st.global.u64 [%rd1], %rd2; setp.lt.u32 %p1, %r1, 16; @%p1 exit; st.global.u64 [%rd1], %rd2; ret;";
        for (i, w) in words(body, 32, schedule)[..32].iter().enumerate() {
            assert_eq!(*w, 10 + i as u64 % 3, "{schedule:?}");
        }
    }
}
