//! Captures and graphs.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;

use crate::*;

/// Ends a capture that a call has broken.
fn end_broken(s: Handle, what: &str) {
    let (mut status, mut graph): (c_uint, Handle) = (0, STALE);
    ok!(cuStreamIsCapturing(s, to(&mut status)));
    assert_eq!(status, 2, "{what}");
    fails!(CAPTURE_INVALIDATED, cuStreamEndCapture(s, to(&mut graph)));
    assert!(graph.is_null());
    ok!(cuStreamIsCapturing(s, to(&mut status)));
    assert_eq!(status, 0, "{what}");
}

#[test]
fn captures() {
    let _one = begin(0);
    let ((_, f), a, s) = (load(), allocate(16), stream());
    ok!(cuMemsetD32_v2(a, 0u32, 4usize));
    ok!(cuFuncLoad(f));
    ok!(cuCtxSynchronize());
    let (mut status, mut graph, mut run, mut id): (c_uint, Handle, Handle, u64) =
        (9, null_mut(), null_mut(), 0);
    const GLOBAL: u32 = 0;
    const RELAXED: u32 = 2;
    fails!(INVALID_VALUE, cuStreamBeginCapture_v2(s, 3u32));
    fails!(INVALID_HANDLE, cuStreamBeginCapture_v2(STALE, GLOBAL));
    fails!(
        CAPTURE_UNSUPPORTED,
        cuStreamBeginCapture_v2(null_mut::<c_void>(), GLOBAL)
    );
    fails!(ILLEGAL_STATE, cuStreamEndCapture(s, to(&mut graph)));
    fails!(
        ILLEGAL_STATE,
        cuStreamEndCapture(null_mut::<c_void>(), to(&mut graph))
    );
    fails!(INVALID_HANDLE, cuStreamIsCapturing(STALE, to(&mut status)));
    let (no_graph, no_nodes, no_count): (*mut Handle, *mut Handle, *mut usize) =
        (null_mut(), null_mut(), null_mut());
    ok!(cuStreamGetCaptureInfo_v2(
        s,
        to(&mut status),
        to(&mut id),
        no_graph,
        no_nodes,
        no_count
    ));
    assert_eq!((status, id), (0, 0));
    fails!(
        NOT_SUPPORTED,
        cuStreamGetCaptureInfo_v2(
            s,
            to(&mut status),
            to(&mut id),
            to(&mut graph),
            no_nodes,
            no_count
        )
    );

    // Everything that a graph holds; nothing of it happens before the graph is launched.
    let (mut calls, data, mut back) = (0u32, [5u32; 4], [0u32; 4]);
    let mut event: Handle = null_mut();
    ok!(cuEventCreate(to(&mut event), 0u32));
    ok!(cuStreamBeginCapture_v2(s, GLOBAL));
    fails!(ILLEGAL_STATE, cuStreamBeginCapture_v2(s, GLOBAL));
    ok!(cuStreamIsCapturing(s, to(&mut status)));
    assert_eq!(status, 1);
    ok!(cuStreamGetCaptureInfo_v2(
        s,
        to(&mut status),
        to(&mut id),
        no_graph,
        no_nodes,
        no_count
    ));
    assert!(status == 1 && id != 0);
    ok!(cuMemcpyHtoDAsync_v2(a, data.as_ptr(), 16usize, s));
    assert_eq!(launch(f, a, s), 0);
    ok!(cuMemsetD32Async(a, 1u32, 1usize, s));
    ok!(cuLaunchHostFunc(
        s,
        count_up as *const c_void,
        to(&mut calls)
    ));
    // An event of this capture may be waited for in it, and tells nothing outside.
    ok!(cuEventRecord(event, s));
    ok!(cuStreamWaitEvent(s, event, 0u32));
    fails!(CAPTURED_EVENT, cuEventQuery(event));
    fails!(CAPTURED_EVENT, cuEventSynchronize(event));
    ok!(cuEventRecordWithFlags(event, s, 1u32));
    ok!(cuMemcpyDtoHAsync_v2(to(&mut back), a, 16usize, s));
    let (other, wrong) = (s as usize, std::thread::spawn);
    let from_elsewhere = wrong(move || {
        let mut context: Handle = null_mut();
        ok!(cuDevicePrimaryCtxRetain(to(&mut context), 0 as c_int));
        ok!(cuCtxSetCurrent(context));
        let mut graph: Handle = null_mut();
        let status = cu!(cuStreamEndCapture(other as Handle, to(&mut graph)));
        ok!(cuDevicePrimaryCtxRelease_v2(0 as c_int));
        status
    });
    assert_eq!(from_elsewhere.join().unwrap(), CAPTURE_WRONG_THREAD);
    ok!(cuStreamEndCapture(s, to(&mut graph)));
    assert_eq!((calls, back), (0, [0; 4]));
    let mut count = 0usize;
    ok!(cuGraphGetNodes(graph, no_nodes, to(&mut count)));
    assert_eq!(count, 6);
    let mut node: Handle = null_mut();
    fails!(
        NOT_SUPPORTED,
        cuGraphGetNodes(graph, to(&mut node), to(&mut count))
    );
    fails!(
        INVALID_HANDLE,
        cuGraphGetNodes(STALE, no_nodes, to(&mut count))
    );
    fails!(
        INVALID_HANDLE,
        cuGraphInstantiateWithFlags(to(&mut run), STALE, 0u64)
    );
    ok!(cuGraphInstantiateWithFlags(to(&mut run), graph, 0u64));
    ok!(cuGraphDestroy(graph));
    fails!(INVALID_HANDLE, cuGraphDestroy(graph));
    ok!(cuGraphUpload(run, s));
    fails!(INVALID_HANDLE, cuGraphUpload(STALE, s));
    for round in 1..=2 {
        ok!(cuGraphLaunch(run, s));
        assert_eq!((calls, back), (round, [1, 6, 6, 6]));
    }
    fails!(INVALID_HANDLE, cuGraphLaunch(STALE, s));
    fails!(INVALID_HANDLE, cuGraphLaunch(run, STALE));
    ok!(cuEventQuery(event));
    // A graph in a capture is a part of the new graph.
    let (mut outer, mut outer_run): (Handle, Handle) = (null_mut(), null_mut());
    ok!(cuStreamBeginCapture_v2(s, RELAXED));
    ok!(cuGraphLaunch(run, s));
    fails!(CAPTURE_UNSUPPORTED, cuGraphUpload(run, s));
    // Relaxed: what is unsafe in general is allowed.
    let more = allocate(16);
    ok!(cuStreamEndCapture(s, to(&mut outer)));
    ok!(cuMemFree_v2(more));
    ok!(cuGraphInstantiateWithFlags(to(&mut outer_run), outer, 0u64));
    ok!(cuGraphLaunch(outer_run, s));
    assert_eq!(calls, 3);
    // A bug inside a graph is the error of its launch.
    ok!(cuStreamBeginCapture_v2(s, GLOBAL));
    assert_eq!(launch(f, a + 4, s), 0);
    ok!(cuStreamEndCapture(s, to(&mut graph)));
    let mut bad: Handle = null_mut();
    ok!(cuGraphInstantiateWithFlags(to(&mut bad), graph, 0u64));
    fails!(ILLEGAL_ADDRESS, cuGraphLaunch(bad, s));
    for g in [run, outer_run, bad] {
        ok!(cuGraphExecDestroy(g));
        fails!(INVALID_HANDLE, cuGraphExecDestroy(g));
        fails!(INVALID_HANDLE, cuGraphLaunch(g, s));
    }
    ok!(cuEventDestroy_v2(event));
}

/// What a capture forbids breaks it, with the error of CUDA.
#[test]
fn captures_that_are_broken() {
    let _one = begin(0);
    let ((_, f), a, s) = (load(), allocate(16), stream());
    let mut blocking: Handle = null_mut();
    ok!(cuStreamCreate(to(&mut blocking), 0u32));
    let (mut outside, mut address, mut pinned): (Handle, u64, Handle) = (null_mut(), 0, null_mut());
    ok!(cuEventCreate(to(&mut outside), 0u32));
    ok!(cuEventRecord(outside, null_mut::<c_void>()));
    let text = increment();
    let mut module: Handle = null_mut();
    let mut data = [0u32; 4];
    type Broken<'a> = (&'a str, Box<dyn FnMut() -> u32 + 'a>, u32);
    let place = to(&mut data);
    let calls: Vec<Broken> = vec![
        (
            "synchronize",
            Box::new(|| cu!(cuStreamSynchronize(s))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "query",
            Box::new(|| cu!(cuStreamQuery(s))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "device",
            Box::new(|| cu!(cuCtxSynchronize())),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "allocate",
            Box::new(|| cu!(cuMemAlloc_v2(to(&mut address), 8usize))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "free",
            Box::new(|| cu!(cuMemFree_v2(a))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "pinned",
            Box::new(|| cu!(cuMemHostAlloc(to(&mut pinned), 8usize, 0u32))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "module",
            Box::new(|| cu!(cuModuleLoadData(to(&mut module), text.as_ptr()))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "copy in",
            Box::new(move || cu!(cuMemcpyHtoD_v2(a, place, 16usize))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "copy out",
            Box::new(move || cu!(cuMemcpyDtoH_v2(place, a, 16usize))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "copy",
            Box::new(|| cu!(cuMemcpyDtoD_v2(a, a, 16usize))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "fill",
            Box::new(|| cu!(cuMemsetD8_v2(a, 0u8, 16usize))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "fill 32",
            Box::new(|| cu!(cuMemsetD32_v2(a, 0u32, 4usize))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "first launch",
            Box::new(move || launch(f, a, s)),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "function",
            Box::new(move || cu!(cuFuncLoad(f))),
            CAPTURE_UNSUPPORTED,
        ),
        (
            "event",
            Box::new(|| cu!(cuStreamWaitEvent(s, outside, 0u32))),
            CAPTURE_ISOLATION,
        ),
    ];
    for (what, mut call, want) in calls {
        ok!(cuStreamBeginCapture_v2(s, 0u32));
        assert_eq!(call(), want, "{what}");
        // Work on the stream is refused from now on.
        fails!(CAPTURE_INVALIDATED, cuMemsetD8Async(a, 0u8, 16usize, s));
        end_broken(s, what);
    }
    // The legacy stream waits for blocking streams, the threads' own among them, and would wait for a capture.
    for blocking in [blocking, 2 as Handle] {
        ok!(cuStreamBeginCapture_v2(blocking, 2u32));
        fails!(
            CAPTURE_IMPLICIT,
            cuMemsetD8Async(a, 0u8, 16usize, null_mut::<c_void>())
        );
        end_broken(blocking, "legacy");
    }
    // An event of a capture in a stream outside: several streams in a graph are not supported.
    ok!(cuStreamBeginCapture_v2(s, 2u32));
    ok!(cuEventRecord(outside, s));
    fails!(NOT_SUPPORTED, cuStreamWaitEvent(blocking, outside, 0u32));
    let mut graph: Handle = null_mut();
    ok!(cuStreamEndCapture(s, to(&mut graph)));
    ok!(cuGraphDestroy(graph));
    // A stream may be destroyed in the middle of a capture.
    ok!(cuStreamBeginCapture_v2(s, 0u32));
    ok!(cuStreamDestroy_v2(s));
    ok!(cuCtxSynchronize());
    ok!(cuMemFree_v2(a));
}
