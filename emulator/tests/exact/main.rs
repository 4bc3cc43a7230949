//! Every type and modifier of the instructions that the ISA defines exactly, against arithmetic in 128-bit integers:
//! what `instructions.rs` checks in depth for the frequent types, here for all rows of the table. The files have the
//! names of those in `src/lower`.

#[path = "../common/mod.rs"]
mod common;
mod convert;
mod data;
mod floating;
mod integer;
mod memory;
mod values;
mod warp;

use common::{config, module, run};
use cuda_emulator::Schedule;

/// A kernel of one parameter, and what its threads leave at p[tid] as 64-bit words.
fn words(body: &str, threads: u32, schedule: Schedule) -> Vec<u64> {
    let text = module(
        "",
        ".param .u64 p",
        &format!(
            ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<19>; .reg .b64 %rd<19>; .reg .f32 %f<9>; .reg .f64 %fd<9>;
            .shared .align 16 .b8 s[1024]; .local .align 16 .b8 l[64];
            ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mad.wide.u32 %rd1, %r1, 8, %rd1; shl.b32 %r2, %r1, 3;
            mov.u32 %r3, s; add.u32 %r3, %r3, %r2; {body}"
        ),
    );
    let (data, report, status) = run(&text, config(1, threads), schedule, &vec![0u64; 128]);
    assert_eq!(status, Ok(()), "{body}: {:?}", report.finding);
    data
}
