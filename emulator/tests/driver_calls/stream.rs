//! Streams and events.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{null, null_mut};

use crate::*;

#[test]
fn streams_and_events() {
    let _one = begin(0);
    let mut s: Handle = null_mut();
    fails!(INVALID_VALUE, cuStreamCreate(to(&mut s), 2u32));
    fails!(
        INVALID_VALUE,
        cuStreamCreateWithPriority(to(&mut s), 2u32, 0 as c_int)
    );
    ok!(cuStreamCreateWithPriority(to(&mut s), 1u32, -99 as c_int));
    let (mut flags, mut priority, mut id, mut context): (c_uint, c_int, u64, Handle) =
        (9, 9, 0, null_mut());
    ok!(cuStreamGetFlags(s, to(&mut flags)));
    ok!(cuStreamGetPriority(s, to(&mut priority)));
    ok!(cuStreamGetId(s, to(&mut id)));
    ok!(cuStreamGetCtx(s, to(&mut context)));
    assert_eq!((flags, priority), (1, -5));
    assert!(id != 0 && !context.is_null());
    fails!(INVALID_HANDLE, cuStreamGetFlags(STALE, to(&mut flags)));
    fails!(
        INVALID_HANDLE,
        cuStreamGetPriority(STALE, to(&mut priority))
    );
    fails!(INVALID_HANDLE, cuStreamGetId(STALE, to(&mut id)));
    fails!(INVALID_HANDLE, cuStreamGetCtx(STALE, to(&mut context)));
    for s in [null_mut(), 1 as Handle, 2 as Handle, s] {
        ok!(cuStreamSynchronize(s));
        ok!(cuStreamQuery(s));
    }
    fails!(INVALID_HANDLE, cuStreamSynchronize(STALE));
    fails!(INVALID_HANDLE, cuStreamQuery(STALE));
    let mut calls = 0u32;
    ok!(cuLaunchHostFunc(
        s,
        count_up as *const c_void,
        to(&mut calls)
    ));
    assert_eq!(calls, 1);
    fails!(
        INVALID_VALUE,
        cuLaunchHostFunc(s, null::<c_void>(), to(&mut calls))
    );
    fails!(
        INVALID_HANDLE,
        cuLaunchHostFunc(STALE, count_up as *const c_void, to(&mut calls))
    );

    let (mut a, mut b, mut untimed): (Handle, Handle, Handle) =
        (null_mut(), null_mut(), null_mut());
    fails!(INVALID_VALUE, cuEventCreate(to(&mut a), 8u32));
    ok!(cuEventCreate(to(&mut a), 0u32));
    ok!(cuEventCreate(to(&mut b), 0u32));
    ok!(cuEventCreate(to(&mut untimed), 2u32));
    let mut ms = 0f32;
    fails!(INVALID_HANDLE, cuEventElapsedTime_v2(to(&mut ms), a, b));
    ok!(cuEventRecord(a, s));
    ok!(cuEventRecordWithFlags(b, s, 0u32));
    ok!(cuEventRecordWithFlags(untimed, s, 1u32));
    fails!(INVALID_HANDLE, cuEventRecord(a, STALE));
    fails!(INVALID_HANDLE, cuEventRecord(STALE, s));
    fails!(INVALID_HANDLE, cuEventRecordWithFlags(STALE, s, 1u32));
    for event in [a, b, untimed] {
        ok!(cuEventQuery(event));
        ok!(cuEventSynchronize(event));
        ok!(cuStreamWaitEvent(s, event, 0u32));
    }
    fails!(INVALID_HANDLE, cuEventQuery(STALE));
    fails!(INVALID_HANDLE, cuEventSynchronize(STALE));
    fails!(INVALID_HANDLE, cuStreamWaitEvent(s, STALE, 0u32));
    fails!(INVALID_HANDLE, cuStreamWaitEvent(STALE, a, 0u32));
    ok!(cuEventElapsedTime_v2(to(&mut ms), a, b));
    assert!(ms >= 0.0);
    ok!(cuEventElapsedTime(to(&mut ms), b, a));
    assert!(ms <= 0.0);
    fails!(INVALID_HANDLE, cuEventElapsedTime(to(&mut ms), a, untimed));
    for event in [a, b, untimed] {
        ok!(cuEventDestroy_v2(event));
        fails!(INVALID_HANDLE, cuEventDestroy_v2(event));
    }
    ok!(cuStreamDestroy_v2(s));
    fails!(INVALID_HANDLE, cuStreamDestroy_v2(s));
    fails!(INVALID_HANDLE, cuStreamSynchronize(s));
}
