//! Modules and functions.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};

use crate::*;

#[test]
fn modules_and_functions() {
    let _one = begin(1);
    let (mut module, mut f): (Handle, Handle) = (null_mut(), null_mut());
    let text = |from: &str, to: &str| {
        CString::new(increment().to_str().unwrap().replace(from, to)).unwrap()
    };
    for (error, text) in [
        (INVALID_IMAGE, CString::new("hello").unwrap()),
        (NO_BINARY_FOR_GPU, CString::new("\u{7f}ELF").unwrap()),
        (INVALID_PTX, text("add.u32", "add.f99")),
        (UNSUPPORTED_PTX_VERSION, text("7.8", "99.0")),
        (NO_BINARY_FOR_GPU, text("sm_80", "sm_90")),
        (OUT_OF_MEMORY, text("counter = 5", "counter[100000000]")),
    ] {
        fails!(error, cuModuleLoadData(to(&mut module), text.as_ptr()));
    }
    fails!(
        INVALID_VALUE,
        cuModuleLoadData(to(&mut module), null::<c_char>())
    );
    // A log too short for the message takes its beginning.
    let mut log = [1u8; 8];
    let (options, values) = ([5u32, 6], [log.as_mut_ptr() as usize, log.len()]);
    let bad = text("add.u32", "add.f99");
    fails!(
        INVALID_PTX,
        cuModuleLoadDataEx(
            to(&mut module),
            bad.as_ptr(),
            2u32,
            options.as_ptr(),
            values.as_ptr()
        )
    );
    assert_eq!(&log, b"ptx lin\0");
    let good = increment();
    ok!(cuModuleLoadDataEx(
        to(&mut module),
        good.as_ptr(),
        0u32,
        null::<c_uint>(),
        null::<usize>()
    ));
    let mut mode: c_uint = 0;
    ok!(cuModuleGetLoadingMode(to(&mut mode)));
    assert_eq!(mode, 2);
    fails!(INVALID_VALUE, cuModuleGetLoadingMode(null_mut::<c_uint>()));

    fails!(
        NOT_FOUND,
        cuModuleGetFunction(to(&mut f), module, c"q".as_ptr())
    );
    fails!(
        INVALID_VALUE,
        cuModuleGetFunction(to(&mut f), module, null::<c_char>())
    );
    fails!(
        INVALID_HANDLE,
        cuModuleGetFunction(to(&mut f), STALE, c"k".as_ptr())
    );
    ok!(cuModuleGetFunction(to(&mut f), module, c"k".as_ptr()));
    let mut state: c_uint = 9;
    ok!(cuFuncIsLoaded(to(&mut state), f));
    assert_eq!(state, 0);
    let (mut address, mut size) = (0u64, 0usize);
    ok!(cuModuleGetGlobal_v2(
        to(&mut address),
        to(&mut size),
        module,
        c"counter".as_ptr()
    ));
    let mut counter = 0u32;
    ok!(cuMemcpyDtoH_v2(to(&mut counter), address, size));
    assert_eq!((counter, size), (5, 4));
    fails!(
        NOT_FOUND,
        cuModuleGetGlobal_v2(to(&mut address), to(&mut size), module, c"k".as_ptr())
    );
    fails!(
        INVALID_HANDLE,
        cuModuleGetGlobal_v2(to(&mut address), to(&mut size), STALE, c"k".as_ptr())
    );

    let mut value: c_int = 0;
    ok!(cuFuncGetAttribute(to(&mut value), 0u32, f));
    assert_eq!(value, 1024);
    fails!(INVALID_VALUE, cuFuncGetAttribute(to(&mut value), 99u32, f));
    fails!(
        INVALID_HANDLE,
        cuFuncGetAttribute(to(&mut value), 0u32, STALE)
    );
    ok!(cuFuncSetAttribute(f, 8u32, 163 << 10 as c_int));
    fails!(
        INVALID_VALUE,
        cuFuncSetAttribute(f, 8u32, (163 << 10) + 1 as c_int)
    );
    fails!(INVALID_VALUE, cuFuncSetAttribute(f, 8u32, -1 as c_int));
    fails!(INVALID_VALUE, cuFuncSetAttribute(f, 0u32, 1 as c_int));
    fails!(INVALID_HANDLE, cuFuncSetAttribute(STALE, 8u32, 0 as c_int));
    ok!(cuFuncSetCacheConfig(f, 1u32));
    fails!(INVALID_HANDLE, cuFuncSetCacheConfig(STALE, 1u32));
    // Asking for a property has loaded it already.
    ok!(cuFuncIsLoaded(to(&mut state), f));
    assert_eq!(state, 1);
    ok!(cuFuncLoad(f));
    fails!(INVALID_HANDLE, cuFuncLoad(STALE));
    fails!(INVALID_HANDLE, cuFuncIsLoaded(to(&mut state), STALE));

    // Occupancy: 2048 threads, 164 KB of shared memory.
    let (mut blocks, mut block): (c_int, c_int) = (0, 0);
    ok!(cuOccupancyMaxActiveBlocksPerMultiprocessor(
        to(&mut blocks),
        f,
        256 as c_int,
        0usize
    ));
    assert_eq!(blocks, 8);
    fails!(
        INVALID_VALUE,
        cuOccupancyMaxActiveBlocksPerMultiprocessor(to(&mut blocks), f, 0 as c_int, 0usize)
    );
    ok!(cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        to(&mut blocks),
        f,
        1024 as c_int,
        81usize << 10,
        0u32
    ));
    assert_eq!(blocks, 2);
    fails!(
        INVALID_HANDLE,
        cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
            to(&mut blocks),
            STALE,
            1024 as c_int,
            0usize,
            0u32
        )
    );
    ok!(cuOccupancyAvailableDynamicSMemPerBlock(
        to(&mut size),
        f,
        2 as c_int,
        256 as c_int
    ));
    assert_eq!(size, 81 << 10);
    fails!(
        INVALID_VALUE,
        cuOccupancyAvailableDynamicSMemPerBlock(to(&mut size), f, 0 as c_int, 256 as c_int)
    );
    let no_function: *const c_void = null();
    ok!(cuOccupancyMaxPotentialBlockSizeWithFlags(
        to(&mut blocks),
        to(&mut block),
        f,
        no_function,
        0usize,
        512 as c_int,
        0u32
    ));
    assert_eq!((blocks, block), (4 * 108, 512));
    fails!(
        INVALID_HANDLE,
        cuOccupancyMaxPotentialBlockSizeWithFlags(
            to(&mut blocks),
            to(&mut block),
            STALE,
            no_function,
            0usize,
            512 as c_int,
            0u32
        )
    );

    // Its functions and variables go with the module.
    ok!(cuModuleUnload(module));
    fails!(INVALID_HANDLE, cuModuleUnload(module));
    fails!(INVALID_HANDLE, cuFuncLoad(f));
    fails!(
        INVALID_VALUE,
        cuMemcpyDtoH_v2(to(&mut counter), address, size)
    );
}
