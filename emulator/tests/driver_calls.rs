//! Every driver call by its name in the library, where it succeeds and where it fails.
//!
//! The calls are looked up as any program does, without bindings: those of cudarc depend on the CUDA version that
//! it was built for. A last test sees to it that none is missing here.
#![allow(clippy::undocumented_unsafe_blocks)] // The calls: the emulator survives any argument that is no pointer.

mod common;

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};
use std::sync::{LazyLock, Mutex, MutexGuard};

use common::module;
use cuda_emulator::{Check, install, last_finding};

type Handle = *mut c_void;

const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const INVALID_DEVICE: u32 = 101;
const INVALID_IMAGE: u32 = 200;
const INVALID_CONTEXT: u32 = 201;
const NO_BINARY_FOR_GPU: u32 = 209;
const UNSUPPORTED_LIMIT: u32 = 215;
const INVALID_PTX: u32 = 218;
const UNSUPPORTED_PTX_VERSION: u32 = 222;
const INVALID_HANDLE: u32 = 400;
const ILLEGAL_STATE: u32 = 401;
const NOT_FOUND: u32 = 500;
const ILLEGAL_ADDRESS: u32 = 700;
const LAUNCH_OUT_OF_RESOURCES: u32 = 701;
const CONTEXT_IS_DESTROYED: u32 = 709;
const NOT_SUPPORTED: u32 = 801;
const CAPTURE_UNSUPPORTED: u32 = 900;
const CAPTURE_INVALIDATED: u32 = 901;
const CAPTURE_ISOLATION: u32 = 905;
const CAPTURE_IMPLICIT: u32 = 906;
const CAPTURED_EVENT: u32 = 907;
const CAPTURE_WRONG_THREAD: u32 = 908;

/// Arguments of a C function.
trait Arguments {
    unsafe fn call(self, f: *const c_void) -> u32;
}

macro_rules! arguments {
    ($($t:ident $v:ident),*) => {
        impl<$($t),*> Arguments for ($($t,)*) {
            unsafe fn call(self, f: *const c_void) -> u32 {
                let ($($v,)*) = self;
                let f: unsafe extern "C" fn($($t),*) -> u32 = unsafe { std::mem::transmute(f) };
                unsafe { f($($v),*) }
            }
        }
    };
}
arguments!();
arguments!(A a);
arguments!(A a, B b);
arguments!(A a, B b, C c);
arguments!(A a, B b, C c, D d);
arguments!(A a, B b, C c, D d, E e);
arguments!(A a, B b, C c, D d, E e, F f2);
arguments!(A a, B b, C c, D d, E e, F f2, G g);
arguments!(A a, B b, C c, D d, E e, F f2, G g, H h, I i, J j, K k);

fn call(name: &str, arguments: impl Arguments) -> u32 {
    static LIBRARY: LazyLock<libloading::Library> = LazyLock::new(|| {
        install().unwrap();
        unsafe { libloading::Library::new("libcuda.so") }.unwrap()
    });
    let symbol: libloading::Symbol<*const c_void> =
        unsafe { LIBRARY.get(name.as_bytes()) }.unwrap_or_else(|e| panic!("{e}"));
    unsafe { arguments.call(*symbol) }
}

/// The status of a call.
macro_rules! cu {
    ($name:ident($($argument:expr),* $(,)?)) => { call(stringify!($name), ($($argument,)*)) };
}

/// A call that succeeds.
macro_rules! ok {
    ($name:ident($($argument:expr),* $(,)?)) => {
        assert_eq!(cu!($name($($argument),*)), 0, stringify!($name))
    };
}

/// A call that fails.
macro_rules! fails {
    ($error:expr, $name:ident($($argument:expr),* $(,)?)) => {
        assert_eq!(cu!($name($($argument),*)), $error, stringify!($name))
    };
}

/// An argument that is an address to write to.
fn to<T>(place: &mut T) -> *mut T {
    place
}

/// A handle that was never given out.
const STALE: Handle = 0x7777 as Handle;

/// Makes the context of a device current. Captures and contexts concern the whole process: one test at a time.
fn begin(device: c_int) -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut context = null_mut();
    ok!(cuInit(0u32));
    ok!(cuDevicePrimaryCtxRetain(to::<Handle>(&mut context), device));
    ok!(cuCtxSetCurrent(context));
    guard
}

fn allocate(bytes: usize) -> u64 {
    let mut address = 0u64;
    ok!(cuMemAlloc_v2(to(&mut address), bytes));
    address
}

fn stream() -> Handle {
    let mut stream: Handle = null_mut();
    ok!(cuStreamCreate(to(&mut stream), 1u32));
    stream
}

/// p[tid] += 1.
fn increment() -> CString {
    let body = ".reg .b32 %r<3>; .reg .b64 %rd<3>; ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x;
        mad.wide.u32 %rd1, %r1, 4, %rd1; ld.global.u32 %r2, [%rd1]; add.u32 %r2, %r2, 1; st.global.u32 [%rd1], %r2;";
    CString::new(module(".global .u32 counter = 5;", ".param .u64 p", body)).unwrap()
}

/// A module, and its function.
fn load() -> (Handle, Handle) {
    let (mut module, mut f): (Handle, Handle) = (null_mut(), null_mut());
    ok!(cuModuleLoadData(to(&mut module), increment().as_ptr()));
    ok!(cuModuleGetFunction(to(&mut f), module, c"k".as_ptr()));
    (module, f)
}

/// Launches 4 threads on the buffer at an address.
fn launch(f: Handle, mut address: u64, on: Handle) -> u32 {
    let mut params = [to(&mut address).cast::<c_void>()];
    let no_extra: *mut Handle = null_mut();
    cu!(cuLaunchKernel(
        f,
        1u32,
        1u32,
        1u32,
        4u32,
        1u32,
        1u32,
        0u32,
        on,
        params.as_mut_ptr(),
        no_extra
    ))
}

fn words(address: u64) -> [u32; 4] {
    let mut data = [0u32; 4];
    ok!(cuMemcpyDtoH_v2(to(&mut data), address, 16usize));
    data
}

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
    assert_eq!(n, 2);
    ok!(cuDeviceGet(to(&mut device), 1 as c_int));
    assert_eq!(device, 1);
    fails!(INVALID_DEVICE, cuDeviceGet(to(&mut device), 2 as c_int));
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
    fails!(INVALID_DEVICE, cuDeviceGetUuid_v2(to(&mut a), 2 as c_int));
    let mut bytes = 0usize;
    ok!(cuDeviceTotalMem_v2(to(&mut bytes), 0 as c_int));
    assert_eq!(bytes, 80 << 30);
    fails!(
        INVALID_DEVICE,
        cuDeviceTotalMem_v2(to(&mut bytes), 2 as c_int)
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
        cuDeviceGetAttribute(to(&mut value), 10u32, 2 as c_int)
    );

    let mut context: Handle = null_mut();
    fails!(
        INVALID_DEVICE,
        cuDevicePrimaryCtxRetain(to(&mut context), 2 as c_int)
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
        cuDevicePrimaryCtxGetState(2 as c_int, to(&mut flags), to(&mut active))
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
    let (data, s) = ([1u32, 2, 3, 4], stream());
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

#[test]
fn modules_and_functions() {
    let _one = begin(1);
    let (mut module, mut f): (Handle, Handle) = (null_mut(), null_mut());
    let text = |from: &str, to: &str| {
        CString::new(increment().to_str().unwrap().replace(from, to)).unwrap()
    };
    for (error, text) in [
        (INVALID_IMAGE, CString::new("\u{7f}ELF").unwrap()),
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
    assert_eq!(mode, 1);
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
    ok!(cuFuncLoad(f));
    fails!(INVALID_HANDLE, cuFuncLoad(STALE));
    let mut state: c_uint = 0;
    ok!(cuFuncIsLoaded(to(&mut state), f));
    assert_eq!(state, 1);
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
    fails!(
        INVALID_VALUE,
        cuLaunchKernel(
            f, 1u32, 1u32, 1u32, 4u32, 1u32, 1u32, 0u32, stream, none, none
        )
    );
    fails!(
        INVALID_VALUE,
        cuLaunchKernel(
            f, 1u32, 1u32, 1u32, 0u32, 1u32, 1u32, 0u32, stream, none, none
        )
    );
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
    ok!(cuLaunchKernel(
        f,
        1u32,
        1u32,
        1u32,
        4u32,
        1u32,
        1u32,
        0u32,
        stream,
        none,
        extra.as_mut_ptr()
    ));
    extra[3] = (&raw const sizes[1]).cast_mut().cast();
    fails!(
        INVALID_VALUE,
        cuLaunchKernel(
            f,
            1u32,
            1u32,
            1u32,
            4u32,
            1u32,
            1u32,
            0u32,
            stream,
            none,
            extra.as_mut_ptr()
        )
    );
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
    // Ignore; a cluster; cooperative.
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
        fails!(
            want,
            cuLaunchKernel(
                f, 1u32, 1u32, 1u32, 4u32, 1u32, 1u32, 0u32, stream, none, none
            )
        );
    }
}

extern "C" fn count_up(counter: *mut c_void) {
    unsafe { *counter.cast::<u32>() += 1 };
}

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
    let (a, s) = (allocate(16), stream());
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
    // The legacy stream waits for blocking streams, and would wait for a capture.
    ok!(cuStreamBeginCapture_v2(blocking, 2u32));
    fails!(
        CAPTURE_IMPLICIT,
        cuMemsetD8Async(a, 0u8, 16usize, null_mut::<c_void>())
    );
    end_broken(blocking, "legacy");
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

/// No call is without its tests: it succeeds somewhere in this file, and fails somewhere.
#[test]
fn every_call_is_here() {
    // These cannot fail with valid addresses.
    const NEVER_FAIL: [&str; 2] = ["cuCtxGetCurrent", "cuDeviceGetCount"];
    let here = include_str!("driver_calls.rs");
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/driver");
    let mut calls = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for line in text.lines() {
            let Some(rest) = line.strip_prefix("pub unsafe extern \"C\" fn ") else {
                continue;
            };
            let name = rest.split('(').next().unwrap();
            calls += 1;
            let ways = here.matches(&format!(" {name}(")).count()
                + here.matches(&format!("({name}(")).count();
            let least = if NEVER_FAIL.contains(&name) { 1 } else { 2 };
            assert!(ways >= least, "{name} is tried {ways} times");
        }
    }
    assert!(calls > 70, "{calls}");
}
