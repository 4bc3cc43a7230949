//! Errors, devices and contexts.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};

use crate::*;

#[test]
fn errors_have_names() {
    let (mut name, mut text): (*const c_char, *const c_char) = (null(), null());
    ok!(cuGetErrorName(ILLEGAL_ADDRESS, to(&mut name)));
    ok!(cuGetErrorString(ILLEGAL_ADDRESS, to(&mut text)));
    let read = |p| unsafe { CStr::from_ptr(p) }.to_str().unwrap();
    assert_eq!(read(name), "CUDA_ERROR_ILLEGAL_ADDRESS");
    assert_eq!(read(text), "an illegal memory access was encountered");
    fails!(INVALID_VALUE, cuGetErrorName(12345u32, to(&mut name)));
    fails!(INVALID_VALUE, cuGetErrorString(12345u32, to(&mut text)));
    assert!(name.is_null() && text.is_null());
}

#[test]
fn devices_and_contexts() {
    let _one = begin(0);
    let (mut n, mut version, mut device): (c_int, c_int, c_int) = (0, 0, -1);
    ok!(cuDriverGetVersion(to(&mut version)));
    assert!(version >= 12000);
    fails!(INVALID_VALUE, cuDriverGetVersion(null_mut::<c_int>()));
    fails!(INVALID_VALUE, cuInit(1u32));
    ok!(cuDeviceGetCount(to(&mut n)));
    assert_eq!(n, 5);
    ok!(cuDeviceGet(to(&mut device), 1 as c_int));
    assert_eq!(device, 1);
    fails!(INVALID_DEVICE, cuDeviceGet(to(&mut device), 5 as c_int));
    fails!(INVALID_DEVICE, cuDeviceGet(to(&mut device), -1 as c_int));
    let mut name = [0u8; 5];
    ok!(cuDeviceGetName(name.as_mut_ptr(), 5 as c_int, 0 as c_int));
    assert_eq!(&name, b"NVID\0");
    fails!(
        INVALID_VALUE,
        cuDeviceGetName(name.as_mut_ptr(), 0 as c_int, 0 as c_int)
    );
    fails!(
        INVALID_DEVICE,
        cuDeviceGetName(name.as_mut_ptr(), 5 as c_int, 7 as c_int)
    );
    let (mut a, mut b) = ([0u8; 16], [0u8; 16]);
    ok!(cuDeviceGetUuid_v2(to(&mut a), 0 as c_int));
    ok!(cuDeviceGetUuid_v2(to(&mut b), 1 as c_int));
    assert_ne!(a, b);
    fails!(INVALID_DEVICE, cuDeviceGetUuid_v2(to(&mut a), 5 as c_int));
    let mut bytes = 0usize;
    ok!(cuDeviceTotalMem_v2(to(&mut bytes), 0 as c_int));
    assert_eq!(bytes, 80 << 30);
    fails!(
        INVALID_DEVICE,
        cuDeviceTotalMem_v2(to(&mut bytes), 5 as c_int)
    );
    // Warp size; memory pools, which are absent; an attribute that nobody knows.
    let mut value: c_int = 0;
    for (attribute, want) in [(10u32, 32), (115, 0)] {
        ok!(cuDeviceGetAttribute(to(&mut value), attribute, 0 as c_int));
        assert_eq!(value, want);
    }
    fails!(
        INVALID_VALUE,
        cuDeviceGetAttribute(to(&mut value), 9999u32, 0 as c_int)
    );
    fails!(
        INVALID_DEVICE,
        cuDeviceGetAttribute(to(&mut value), 10u32, 5 as c_int)
    );

    let mut context: Handle = null_mut();
    fails!(
        INVALID_DEVICE,
        cuDevicePrimaryCtxRetain(to(&mut context), 5 as c_int)
    );
    ok!(cuCtxGetCurrent(to(&mut context)));
    assert!(!context.is_null());
    ok!(cuCtxGetDevice(to(&mut device)));
    assert_eq!(device, 0);
    ok!(cuCtxSetFlags(0u32));
    ok!(cuCtxSynchronize());
    let (mut least, mut greatest): (c_int, c_int) = (9, 9);
    ok!(cuCtxGetStreamPriorityRange(
        to(&mut least),
        to(&mut greatest)
    ));
    assert!(greatest < least);
    ok!(cuCtxGetLimit(to(&mut bytes), 0u32));
    assert_eq!(bytes, 1024);
    fails!(UNSUPPORTED_LIMIT, cuCtxGetLimit(to(&mut bytes), 99u32));
    fails!(INVALID_CONTEXT, cuCtxSetCurrent(STALE));
    // Without a context nothing works, and asking for it gives none.
    ok!(cuCtxSetCurrent(null_mut::<c_void>()));
    let mut none: Handle = STALE;
    ok!(cuCtxGetCurrent(to(&mut none)));
    assert!(none.is_null());
    fails!(INVALID_CONTEXT, cuCtxGetDevice(to(&mut device)));
    fails!(INVALID_CONTEXT, cuCtxSynchronize());
    fails!(INVALID_CONTEXT, cuCtxSetFlags(0u32));
    fails!(
        INVALID_CONTEXT,
        cuCtxGetStreamPriorityRange(to(&mut least), to(&mut greatest))
    );
    fails!(INVALID_CONTEXT, cuCtxGetLimit(to(&mut bytes), 0u32));
    let mut address = 0u64;
    fails!(INVALID_CONTEXT, cuMemAlloc_v2(to(&mut address), 8usize));
    ok!(cuCtxSetCurrent(context));

    // Released as often as it was retained, the context is gone.
    let (mut flags, mut active): (c_uint, c_int) = (9, 9);
    let state = |flags: &mut c_uint, active: &mut c_int| {
        cu!(cuDevicePrimaryCtxGetState(
            1 as c_int,
            to(flags),
            to(active)
        ))
    };
    fails!(
        INVALID_DEVICE,
        cuDevicePrimaryCtxGetState(5 as c_int, to(&mut flags), to(&mut active))
    );
    let mut other: Handle = null_mut();
    ok!(cuDevicePrimaryCtxRetain(to(&mut other), 1 as c_int));
    ok!(cuCtxSetCurrent(other));
    assert_eq!((state(&mut flags, &mut active), active), (0, 1));
    while active == 1 {
        ok!(cuDevicePrimaryCtxRelease_v2(1 as c_int));
        assert_eq!(state(&mut flags, &mut active), 0);
    }
    fails!(
        CONTEXT_IS_DESTROYED,
        cuMemAlloc_v2(to(&mut address), 8usize)
    );
    fails!(INVALID_CONTEXT, cuDevicePrimaryCtxRelease_v2(1 as c_int));
    fails!(INVALID_CONTEXT, cuCtxSetCurrent(other));
    ok!(cuCtxSetCurrent(context));
}
