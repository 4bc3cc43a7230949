//! Memory.

use std::ffi::{c_uint, c_void};
use std::ptr::{null, null_mut};

use crate::*;

#[test]
fn memory() {
    let _one = begin(0);
    let mut address = 0u64;
    fails!(INVALID_VALUE, cuMemAlloc_v2(to(&mut address), 0usize));
    fails!(OUT_OF_MEMORY, cuMemAlloc_v2(to(&mut address), 1usize << 40));
    fails!(INVALID_VALUE, cuMemAlloc_v2(null_mut::<u64>(), 8usize));
    let (a, b) = (allocate(16), allocate(20));
    let (mut free, mut total, mut less) = (0usize, 0usize, 0usize);
    ok!(cuMemGetInfo_v2(to(&mut free), to(&mut total)));
    let c = allocate(1 << 20);
    ok!(cuMemGetInfo_v2(to(&mut less), to(&mut total)));
    assert_eq!((free - less, total), (1 << 20, 80 << 30));
    fails!(
        INVALID_VALUE,
        cuMemGetInfo_v2(null_mut::<usize>(), to(&mut total))
    );

    let (mut base, mut size) = (0u64, 0usize);
    ok!(cuMemGetAddressRange_v2(to(&mut base), to(&mut size), b + 7));
    assert_eq!((base, size), (b, 20));
    fails!(
        NOT_FOUND,
        cuMemGetAddressRange_v2(to(&mut base), to(&mut size), 64u64)
    );
    let mut kind: c_uint = 0;
    ok!(cuPointerGetAttribute(to(&mut kind), 2u32, b + 7));
    assert_eq!(kind, 2);
    fails!(
        INVALID_VALUE,
        cuPointerGetAttribute(to(&mut kind), 2u32, 64u64)
    );
    fails!(
        INVALID_VALUE,
        cuPointerGetAttribute(to(&mut kind), 77u32, b)
    );

    // Copies, at once and on a stream; every one is checked against the ends of the buffer.
    // The stream and the legacy one wait for each other.
    let (data, mut s): (_, Handle) = ([1u32, 2, 3, 4], null_mut());
    ok!(cuStreamCreate(to(&mut s), 0u32));
    let host = data.as_ptr();
    ok!(cuMemcpyHtoD_v2(a, host, 16usize));
    assert_eq!(words(a), data);
    fails!(INVALID_VALUE, cuMemcpyHtoD_v2(a + 4, host, 16usize));
    fails!(INVALID_VALUE, cuMemcpyHtoD_v2(a, null::<u32>(), 16usize));
    ok!(cuMemcpyHtoDAsync_v2(b, host, 16usize, s));
    fails!(INVALID_VALUE, cuMemcpyHtoDAsync_v2(b + 8, host, 16usize, s));
    fails!(
        INVALID_HANDLE,
        cuMemcpyHtoDAsync_v2(b, host, 16usize, STALE)
    );
    let mut back = [0u32; 4];
    ok!(cuMemcpyDtoHAsync_v2(to(&mut back), b, 16usize, s));
    assert_eq!(back, data);
    fails!(
        INVALID_VALUE,
        cuMemcpyDtoHAsync_v2(to(&mut back), b - 4, 16usize, s)
    );
    fails!(
        INVALID_HANDLE,
        cuMemcpyDtoHAsync_v2(to(&mut back), b, 16usize, STALE)
    );
    fails!(
        INVALID_VALUE,
        cuMemcpyDtoH_v2(to(&mut back), a + 4, 16usize)
    );
    fails!(
        INVALID_VALUE,
        cuMemcpyDtoH_v2(null_mut::<u32>(), a, 16usize)
    );
    ok!(cuMemcpyDtoD_v2(b + 4, a, 16usize));
    assert_eq!(words(b + 4), data);
    fails!(INVALID_VALUE, cuMemcpyDtoD_v2(b + 8, a, 16usize));
    ok!(cuMemcpyDtoDAsync_v2(b, a, 8usize, s));
    fails!(INVALID_VALUE, cuMemcpyDtoDAsync_v2(b, a + 12, 8usize, s));
    fails!(INVALID_HANDLE, cuMemcpyDtoDAsync_v2(b, a, 8usize, STALE));
    ok!(cuMemcpyPeerAsync(
        b,
        null_mut::<c_void>(),
        a,
        null_mut::<c_void>(),
        8usize,
        s
    ));
    fails!(
        INVALID_VALUE,
        cuMemcpyPeerAsync(b, null_mut::<c_void>(), a, null_mut::<c_void>(), 24usize, s)
    );

    // Fills of each width; they must be aligned and inside.
    ok!(cuMemsetD8_v2(a, 7u8, 16usize));
    assert_eq!(words(a), [0x0707_0707; 4]);
    fails!(INVALID_VALUE, cuMemsetD8_v2(a, 7u8, 17usize));
    ok!(cuMemsetD8Async(a + 1, 8u8, 1usize, s));
    fails!(INVALID_HANDLE, cuMemsetD8Async(a, 8u8, 1usize, STALE));
    ok!(cuMemsetD16Async(a + 2, 0x1234u16, 1usize, s));
    fails!(INVALID_VALUE, cuMemsetD16Async(a + 1, 0u16, 1usize, s));
    ok!(cuMemsetD32_v2(a + 4, 0x1234_5678u32, 2usize));
    fails!(INVALID_VALUE, cuMemsetD32_v2(a + 2, 0u32, 1usize));
    fails!(INVALID_VALUE, cuMemsetD32_v2(a, 0u32, usize::MAX / 2));
    ok!(cuMemsetD32Async(a + 12, 9u32, 1usize, s));
    fails!(INVALID_VALUE, cuMemsetD32Async(a + 12, 9u32, 2usize, s));
    assert_eq!(words(a), [0x1234_0807, 0x1234_5678, 0x1234_5678, 9]);

    // Freed once, by its first address; then it is no memory any more.
    fails!(INVALID_VALUE, cuMemFree_v2(a + 4));
    ok!(cuMemFree_v2(0u64));
    for address in [a, b, c] {
        ok!(cuMemFree_v2(address));
        fails!(INVALID_VALUE, cuMemFree_v2(address));
    }
    fails!(INVALID_VALUE, cuMemcpyHtoD_v2(a, host, 16usize));
    let mut pinned: Handle = null_mut();
    ok!(cuMemHostAlloc(to(&mut pinned), 100usize, 0u32));
    assert!((pinned as usize).is_multiple_of(4096));
    ok!(cuMemFreeHost(pinned));
    fails!(INVALID_VALUE, cuMemFreeHost(pinned));
    fails!(INVALID_VALUE, cuMemHostAlloc(to(&mut pinned), 0usize, 0u32));
    fails!(
        OUT_OF_MEMORY,
        cuMemHostAlloc(to(&mut pinned), usize::MAX, 0u32)
    );
}
