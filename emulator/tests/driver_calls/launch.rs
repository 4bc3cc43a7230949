//! Launches.

use std::ffi::{CString, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};

use cuda_emulator::{Check, last_finding};

use crate::*;

/// Launches one block of some threads, with arguments by address or in one buffer.
fn launch_block(f: Handle, threads: c_uint, params: *mut Handle, extra: *mut Handle) -> u32 {
    let stream: Handle = null_mut();
    cu!(cuLaunchKernel(
        f, 1u32, 1u32, 1u32, threads, 1u32, 1u32, 0u32, stream, params, extra
    ))
}

#[test]
fn launches() {
    let _one = begin(0);
    let ((module, f), a) = (load(), allocate(16));
    ok!(cuMemsetD32_v2(a, 1u32, 4usize));
    assert_eq!(launch(f, a, null_mut()), 0);
    assert_eq!(words(a), [2; 4]);
    // Bugs: as the error of the launch that has them, and later calls work.
    assert_eq!(launch(f, a + 4, null_mut()), ILLEGAL_ADDRESS);
    assert_eq!(last_finding().unwrap().check, Check::OutOfBounds);
    assert_eq!(launch(f, a, STALE), INVALID_HANDLE);
    assert_eq!(launch(STALE, a, null_mut()), INVALID_HANDLE);
    let (none, stream): (*mut Handle, Handle) = (null_mut(), null_mut());
    assert_eq!(launch_block(f, 4, none, none), INVALID_VALUE);
    assert_eq!(launch_block(f, 0, none, none), INVALID_VALUE);
    assert_eq!(last_finding().unwrap().check, Check::LaunchLimits);
    // Arguments in one buffer: (1, buffer, 2, size, 0).
    let (mut arguments, sizes) = (a, [8usize, 4]);
    let mut extra: [Handle; 5] = [
        1 as Handle,
        to(&mut arguments).cast(),
        2 as Handle,
        (&raw const sizes[0]).cast_mut().cast(),
        null_mut(),
    ];
    assert_eq!(launch_block(f, 4, none, extra.as_mut_ptr()), 0);
    extra[3] = (&raw const sizes[1]).cast_mut().cast();
    let status = launch_block(f, 4, none, extra.as_mut_ptr());
    assert_eq!(status, INVALID_VALUE);
    assert_eq!(words(a), [3; 4]);

    #[repr(C)]
    struct Config {
        grid: [c_uint; 3],
        block: [c_uint; 3],
        dynamic: c_uint,
        stream: Handle,
        attributes: *const [u64; 9],
        count: c_uint,
    }
    let attribute = |kind: u64| [kind, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut address = a;
    let mut params = [to(&mut address).cast::<c_void>()];
    // Ignore; a cluster of no shape; cooperative.
    for (kind, want) in [(0, 0), (4, NOT_SUPPORTED), (2, NOT_SUPPORTED)] {
        let attributes = [attribute(kind)];
        let config = Config {
            grid: [1; 3],
            block: [4, 1, 1],
            dynamic: 0,
            stream,
            attributes: attributes.as_ptr(),
            count: 1,
        };
        let status = cu!(cuLaunchKernelEx(
            &raw const config,
            f,
            params.as_mut_ptr(),
            none
        ));
        assert_eq!(status, want);
    }
    fails!(
        INVALID_VALUE,
        cuLaunchKernelEx(null::<Config>(), f, params.as_mut_ptr(), none)
    );
    let mut clusters: c_int = 0;
    let places = to(&mut clusters);
    fails!(
        INVALID_VALUE,
        cuOccupancyMaxActiveClusters(places, f, null::<Config>())
    );
    let config = Config {
        grid: [1; 3],
        block: [1024, 1, 1],
        dynamic: 0,
        stream,
        attributes: null(),
        count: 0,
    };
    // Two blocks on each of 16 multiprocessors of 8 GPCs.
    ok!(cuOccupancyMaxActiveClusters(places, f, &raw const config));
    assert_eq!(clusters, 256);
    assert_eq!(words(a), [4; 4]);

    // Of another device's context.
    let mut other: Handle = null_mut();
    ok!(cuDevicePrimaryCtxRetain(to(&mut other), 1 as c_int));
    ok!(cuCtxSetCurrent(other));
    assert_eq!(launch(f, a, null_mut()), INVALID_CONTEXT);
    ok!(cuCtxSetCurrent(null_mut::<c_void>()));
    assert_eq!(launch(f, a, null_mut()), INVALID_CONTEXT);
    drop(_one);
    let _one = begin(0);
    ok!(cuModuleUnload(module));
    assert_eq!(launch(f, a, null_mut()), INVALID_HANDLE);

    // Limits of the kernel: .maxntid, and static shared memory above 48 KB.
    for (declarations, want) in [
        (".maxntid 2, 1, 1", LAUNCH_OUT_OF_RESOURCES),
        ("", LAUNCH_OUT_OF_RESOURCES),
    ] {
        let shared = if declarations.is_empty() {
            ".shared .b8 s[49153];"
        } else {
            ""
        };
        let text = format!(
            ".version 7.0 .target sm_80 .address_size 64 .visible .entry k() {declarations} {{ {shared} ret; }}"
        );
        let text = CString::new(text).unwrap();
        let (mut module, mut f): (Handle, Handle) = (null_mut(), null_mut());
        ok!(cuModuleLoadData(to(&mut module), text.as_ptr()));
        ok!(cuModuleGetFunction(to(&mut f), module, c"k".as_ptr()));
        assert_eq!(launch_block(f, 4, none, none), want);
    }
}
