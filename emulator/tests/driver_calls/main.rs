//! Every driver call by its name in the library, where it succeeds and where it fails.
//!
//! The calls are looked up as any program does, without bindings: those of cudarc depend on the CUDA version that
//! it was built for. A last test sees to it that none is missing here. The files have the names of those in `src/driver`.
#![allow(clippy::undocumented_unsafe_blocks)] // The calls: the emulator survives any argument that is no pointer.

#[path = "../common/mod.rs"]
mod common;

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

mod context;
mod graph;
mod launch;
mod memory;
mod module;
mod order;
mod stream;

use std::ffi::{CString, c_int, c_void};
use std::ptr::null_mut;
use std::sync::{LazyLock, Mutex, MutexGuard};

use common::module;
use cuda_emulator::install;

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
const LAUNCH_FAILED: u32 = 719;
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
    /// # Safety
    /// `f` is a function that may be called with these.
    unsafe fn call(self, f: *const c_void) -> u32;
}

macro_rules! arguments {
    ($($t:ident $v:ident),*) => {
        impl<$($t),*> Arguments for ($($t,)*) {
            unsafe fn call(self, f: *const c_void) -> u32 {
                let ($($v,)*) = self;
                // SAFETY: the caller gives the address of a function that takes these.
                let f: unsafe extern "C" fn($($t),*) -> u32 = unsafe { std::mem::transmute(f) };
                // SAFETY: as above; what the pointers among them point to is the caller's.
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
    // SAFETY: each test gives what the call takes; the addresses are of its own variables.
    unsafe { arguments.call(*symbol) }
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

/// Counts the times that the driver called it.
extern "C" fn count_up(counter: *mut c_void) {
    unsafe { *counter.cast::<u32>() += u32::from(cuda_emulator::in_driver_call()) };
}

/// No call is without its tests: it succeeds somewhere in these files, and fails somewhere.
#[test]
fn every_call_is_here() {
    // These cannot fail with valid addresses.
    const NEVER_FAIL: [&str; 2] = ["cuCtxGetCurrent", "cuDeviceGetCount"];
    let read = |folder: &str| -> Vec<String> {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        let files = std::fs::read_dir(folder).unwrap();
        files
            .map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap())
            .collect()
    };
    let here = read("tests/driver_calls").concat();
    let mut calls = 0;
    for text in read("src/driver") {
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
