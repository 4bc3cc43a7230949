//! Work of several streams on the same bytes: reported unless something orders it.

use std::ptr::null_mut;

use cuda_emulator::{Check, last_finding};

use crate::*;

const LEGACY: Handle = null_mut();
const PER_THREAD: Handle = 2 as Handle;

fn event() -> Handle {
    let mut event: Handle = null_mut();
    ok!(cuEventCreate(to(&mut event), 0u32));
    event
}

/// A function, memory for 8 words, and two streams that wait for nobody.
fn setup() -> (Handle, u64, Handle, Handle) {
    let ((_, f), a) = (load(), allocate(32));
    ok!(cuMemsetD32_v2(a, 0u32, 8usize));
    ok!(cuCtxSynchronize());
    (f, a, stream(), stream())
}

/// A launch that is not ordered after what another stream does.
fn races(f: Handle, a: u64, on: Handle) {
    assert_eq!(launch(f, a, on), LAUNCH_FAILED);
    let finding = last_finding().unwrap();
    assert_eq!((finding.check, finding.ptx_line), (Check::StreamRace, 0));
    assert_eq!(finding.kernel, "k");
    ok!(cuCtxSynchronize());
}

#[test]
fn what_orders_two_streams() {
    let _one = begin(0);
    let (f, a, s, t) = setup();
    let (e, late) = (event(), event());
    // Nothing; an event from before the work; one that was never recorded.
    assert_eq!(launch(f, a, s), 0);
    races(f, a, t);
    let text = last_finding().unwrap().to_string();
    for part in ["bytes 0..16 of allocation #", "`k` on another stream"] {
        assert!(text.contains(part), "{text}");
    }
    ok!(cuEventRecord(e, s));
    assert_eq!(launch(f, a, s), 0);
    ok!(cuStreamWaitEvent(t, e, 0u32));
    ok!(cuStreamWaitEvent(t, late, 0u32));
    races(f, a, t);
    // An event; through a third stream too.
    let u = stream();
    assert_eq!(launch(f, a, s), 0);
    ok!(cuEventRecord(e, s));
    ok!(cuStreamWaitEvent(u, e, 0u32));
    ok!(cuEventRecord(late, u));
    ok!(cuStreamWaitEvent(t, late, 0u32));
    assert_eq!(launch(f, a, t), 0);
    races(f, a, u);
    // A host that waits, in each way.
    let waits: [&dyn Fn(); 5] = [
        &|| ok!(cuStreamSynchronize(s)),
        &|| ok!(cuStreamQuery(s)),
        &|| ok!(cuCtxSynchronize()),
        &|| {
            ok!(cuEventRecord(e, s));
            ok!(cuEventSynchronize(e));
        },
        &|| {
            ok!(cuEventRecordWithFlags(e, s, 0u32));
            ok!(cuEventQuery(e));
        },
    ];
    for wait in waits {
        assert_eq!(launch(f, a, s), 0);
        wait();
        assert_eq!(launch(f, a, t), 0);
        ok!(cuCtxSynchronize());
    }
    // Waiting for the other stream is no help.
    assert_eq!(launch(f, a, s), 0);
    ok!(cuStreamSynchronize(t));
    races(f, a, t);
    // Other bytes.
    assert_eq!(launch(f, a, s), 0);
    assert_eq!(launch(f, a + 16, t), 0);
    races(f, a + 12, s);
}

/// The legacy stream and those that do not say otherwise wait for each other; so do the threads' own.
#[test]
fn the_legacy_stream() {
    let _one = begin(0);
    let (f, a, free, _) = setup();
    let mut blocking: Handle = null_mut();
    ok!(cuStreamCreate(to(&mut blocking), 0u32));
    for s in [LEGACY, blocking, LEGACY, PER_THREAD, LEGACY] {
        assert_eq!(launch(f, a, s), 0);
    }
    races(f, a, free);
    // Two blocking streams are ordered by the legacy stream between them, and by nothing else.
    assert_eq!(launch(f, a, blocking), 0);
    races(f, a, PER_THREAD);
    assert_eq!(launch(f, a, blocking), 0);
    ok!(cuMemsetD8Async(a, 0u8, 16usize, LEGACY));
    assert_eq!(launch(f, a, PER_THREAD), 0);
    ok!(cuCtxSynchronize());
    // The work of a stream does not end with the stream.
    assert_eq!(launch(f, a, blocking), 0);
    ok!(cuStreamDestroy_v2(blocking));
    assert_eq!(launch(f, a, LEGACY), 0);
    ok!(cuCtxSynchronize());
    assert_eq!(launch(f, a, free), 0);
    ok!(cuStreamDestroy_v2(free));
    races(f, a, LEGACY);
}

#[test]
fn copies_fills_and_graphs() {
    let _one = begin(0);
    let (f, a, s, t) = setup();
    let mut host = [0u32; 4];
    let mut pinned: Handle = null_mut();
    ok!(cuMemHostAlloc(to(&mut pinned), 16usize, 0u32));
    let unordered = || {
        assert_eq!(last_finding().unwrap().check, Check::StreamRace);
        ok!(cuCtxSynchronize());
    };
    // Each reads or writes what a launch on another stream writes.
    assert_eq!(launch(f, a, s), 0);
    fails!(
        LAUNCH_FAILED,
        cuMemcpyDtoHAsync_v2(to(&mut host), a, 16usize, t)
    );
    unordered();
    assert_eq!(launch(f, a, s), 0);
    fails!(LAUNCH_FAILED, cuMemcpyDtoH_v2(to(&mut host), a, 16usize));
    unordered();
    assert_eq!(launch(f, a, s), 0);
    fails!(
        LAUNCH_FAILED,
        cuMemcpyHtoDAsync_v2(a, host.as_ptr(), 16usize, t)
    );
    unordered();
    assert_eq!(launch(f, a, s), 0);
    fails!(LAUNCH_FAILED, cuMemcpyDtoDAsync_v2(a + 16, a, 16usize, t));
    unordered();
    assert_eq!(launch(f, a, s), 0);
    fails!(LAUNCH_FAILED, cuMemsetD32Async(a, 0u32, 4usize, t));
    unordered();
    // Reads of both streams are fine; a write is not, after the reads of the other.
    for on in [s, t] {
        ok!(cuMemcpyDtoHAsync_v2(pinned, a, 16usize, on));
    }
    races(f, a, t);
    // A copy to ordinary memory has happened when it returns, one to pinned memory has not.
    ok!(cuMemcpyDtoHAsync_v2(to(&mut host), a, 16usize, s));
    assert_eq!(launch(f, a, t), 0);
    ok!(cuCtxSynchronize());
    // The work of a graph is work of the stream that it is launched on.
    let (mut graph, mut run): (Handle, Handle) = (null_mut(), null_mut());
    ok!(cuStreamBeginCapture_v2(s, 1u32));
    assert_eq!(launch(f, a, s), 0);
    ok!(cuMemsetD32Async(a, 1u32, 4usize, s));
    ok!(cuStreamEndCapture(s, to(&mut graph)));
    ok!(cuGraphInstantiateWithFlags(to(&mut run), graph, 0u64));
    ok!(cuGraphLaunch(run, t));
    assert_eq!(launch(f, a, t), 0);
    fails!(LAUNCH_FAILED, cuGraphLaunch(run, s));
    unordered();
    ok!(cuMemFreeHost(pinned));
}
