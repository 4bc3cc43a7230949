//! A process that has not called `cuInit`: a test of its own, for it is the only one that may not have.
#![allow(clippy::undocumented_unsafe_blocks)] // Calls with valid addresses.

use cudarc::driver::sys::{self, CUresult};

#[test]
fn nothing_works_before_init() {
    cuda_emulator::install().unwrap();
    let (mut n, mut address) = (0, 0);
    let uninitialised = CUresult::CUDA_ERROR_NOT_INITIALIZED;
    unsafe {
        assert_eq!(sys::cuDeviceGetCount(&mut n), uninitialised);
        assert_eq!(sys::cuDeviceGet(&mut n, 0), uninitialised);
        assert_eq!(sys::cuCtxSynchronize(), uninitialised);
        assert_eq!(sys::cuMemAlloc_v2(&mut address, 8), uninitialised);
        assert_eq!(sys::cuInit(0), CUresult::CUDA_SUCCESS);
        assert_eq!(sys::cuDeviceGetCount(&mut n), CUresult::CUDA_SUCCESS);
        // Still without a context.
        assert_eq!(
            sys::cuCtxSynchronize(),
            CUresult::CUDA_ERROR_INVALID_CONTEXT
        );
    }
}
