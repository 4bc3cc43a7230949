//! Initialisation, devices, primary contexts.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use super::error::Error;
use super::{Handle, Status, call, order, put, stream};
use crate::device::{DEVICES, DRIVER_VERSION, Profile};

static INITIALISED: AtomicBool = AtomicBool::new(false);
/// How often each primary context is retained.
static RETAINED: [AtomicU32; DEVICES.len()] = [const { AtomicU32::new(0) }; DEVICES.len()];
/// Handle of the first primary context; that of device i lies 256·i above.
const FIRST_CONTEXT: usize = 0x1000;

thread_local! {
    static CURRENT: Cell<Option<usize>> = const { Cell::new(None) };
}

fn device(ordinal: c_int) -> Result<&'static Profile, Error> {
    if !INITIALISED.load(SeqCst) {
        return Err(Error::NOT_INITIALIZED);
    }
    usize::try_from(ordinal)
        .ok()
        .and_then(|i| DEVICES.get(i))
        .ok_or(Error::INVALID_DEVICE)
}

/// The context handle of a device.
pub(crate) fn handle(ordinal: usize) -> Handle {
    (FIRST_CONTEXT + 256 * ordinal) as Handle
}

/// The device of a context handle.
pub(crate) fn ordinal(context: Handle) -> Result<usize, Error> {
    let i = (context as usize).wrapping_sub(FIRST_CONTEXT);
    if !i.is_multiple_of(256) || i / 256 >= DEVICES.len() || RETAINED[i / 256].load(SeqCst) == 0 {
        return Err(Error::INVALID_CONTEXT);
    }
    Ok(i / 256)
}

/// The device of this thread's current context.
pub(crate) fn current() -> Result<usize, Error> {
    if !INITIALISED.load(SeqCst) {
        return Err(Error::NOT_INITIALIZED);
    }
    let i = CURRENT.get().ok_or(Error::INVALID_CONTEXT)?;
    if RETAINED[i].load(SeqCst) == 0 {
        return Err(Error::CONTEXT_IS_DESTROYED);
    }
    Ok(i)
}

/// Starts the driver.
pub unsafe extern "C" fn cuInit(flags: c_uint) -> Status {
    call(|| {
        if flags != 0 {
            return Err(Error::INVALID_VALUE);
        }
        INITIALISED.store(true, SeqCst);
        Ok(())
    })
}

/// The CUDA version of the driver.
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Status {
    // SAFETY: the caller gives a valid place.
    call(|| unsafe { put(version, DRIVER_VERSION) })
}

/// Number of devices.
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    call(|| {
        device(0)?;
        // SAFETY: the caller gives a valid place.
        unsafe { put(count, DEVICES.len() as c_int) }
    })
}

/// Device handle of an ordinal: the ordinal.
pub unsafe extern "C" fn cuDeviceGet(to: *mut c_int, ordinal: c_int) -> Status {
    call(|| {
        device(ordinal)?;
        // SAFETY: the caller gives a valid place.
        unsafe { put(to, ordinal) }
    })
}

/// Name of a device.
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, dev: c_int) -> Status {
    call(|| {
        let text = device(dev)?.name.as_bytes();
        if name.is_null() || len <= 0 {
            return Err(Error::INVALID_VALUE);
        }
        let n = text.len().min(len as usize - 1);
        // SAFETY: the caller gives `len` writable bytes, and n < len.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, n);
            name.add(n).write(0);
        }
        Ok(())
    })
}

/// Identity of a device.
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], dev: c_int) -> Status {
    call(|| {
        device(dev)?;
        let mut id = *b"cuda-emulator #0";
        id[15] = b'0' + dev as u8;
        // SAFETY: the caller gives a valid place.
        unsafe { put(uuid, id) }
    })
}

/// Memory of a device.
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, dev: c_int) -> Status {
    // SAFETY: the caller gives a valid place.
    call(|| unsafe { put(bytes, device(dev)?.memory as usize) })
}

/// A property of a device. One that the emulator knows nothing about is an error, not 0.
pub unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: c_uint,
    dev: c_int,
) -> Status {
    call(|| {
        let d = device(dev)?;
        let v = match attribute {
            1 => 1024,                      // MAX_THREADS_PER_BLOCK
            2 | 3 => 1024,                  // MAX_BLOCK_DIM_X, _Y
            4 => 64,                        // MAX_BLOCK_DIM_Z
            5 => i32::MAX,                  // MAX_GRID_DIM_X
            6 | 7 => 65535,                 // MAX_GRID_DIM_Y, _Z
            8 => d.shared as i32,           // MAX_SHARED_MEMORY_PER_BLOCK
            9 => 64 << 10,                  // TOTAL_CONSTANT_MEMORY
            10 => 32,                       // WARP_SIZE
            11 => i32::MAX,                 // MAX_PITCH
            12 | 82 => 65536,               // MAX_REGISTERS_PER_BLOCK, _PER_MULTIPROCESSOR
            13 => d.clock_khz,              // CLOCK_RATE
            15 => 1,                        // GPU_OVERLAP
            16 => d.multiprocessors as i32, // MULTIPROCESSOR_COUNT
            17 => 0,                        // KERNEL_EXEC_TIMEOUT
            18 => 0,                        // INTEGRATED
            19 => 0,                        // CAN_MAP_HOST_MEMORY: kernels see device memory only
            20 => 0,                        // COMPUTE_MODE
            31 => 1,                        // CONCURRENT_KERNELS
            32 => 1,                        // ECC_ENABLED
            33 => dev,                      // PCI_BUS_ID
            34 | 50 => 0,                   // PCI_DEVICE_ID, _DOMAIN_ID
            36 => d.memory_clock_khz,       // MEMORY_CLOCK_RATE
            37 => d.bus_bits,               // GLOBAL_MEMORY_BUS_WIDTH
            38 => d.l2 as i32,              // L2_CACHE_SIZE
            39 => 2048,                     // MAX_THREADS_PER_MULTIPROCESSOR
            40 => 3,                        // ASYNC_ENGINE_COUNT
            41 => 1,                        // UNIFIED_ADDRESSING
            75 => d.compute.0 as i32,       // COMPUTE_CAPABILITY_MAJOR
            76 => d.compute.1 as i32,       // COMPUTE_CAPABILITY_MINOR
            78 => 1,                        // STREAM_PRIORITIES_SUPPORTED
            81 => d.shared_per_multiprocessor as i32,
            83 | 88 | 89 => 0, // MANAGED_MEMORY, PAGEABLE_MEMORY_ACCESS, CONCURRENT_MANAGED_ACCESS
            95 => 0,           // COOPERATIVE_LAUNCH
            97 => d.shared_optin as i32, // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
            106 => 32,         // MAX_BLOCKS_PER_MULTIPROCESSOR
            111 => 1024,       // RESERVED_SHARED_MEMORY_PER_BLOCK
            115 => 0,          // MEMORY_POOLS_SUPPORTED
            120 => 0,          // CLUSTER_LAUNCH
            _ => {
                eprintln!("cuda-emulator: cuDeviceGetAttribute: unknown attribute {attribute}");
                return Err(Error::INVALID_VALUE);
            }
        };
        // SAFETY: the caller gives a valid place.
        unsafe { put(value, v) }
    })
}

/// Retains the one context of a device.
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut Handle, dev: c_int) -> Status {
    call(|| {
        device(dev)?;
        RETAINED[dev as usize].fetch_add(1, SeqCst);
        // SAFETY: the caller gives a valid place.
        unsafe { put(context, handle(dev as usize)) }
    })
}

/// Releases the one context of a device.
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(dev: c_int) -> Status {
    call(|| {
        device(dev)?;
        let less = |n: u32| n.checked_sub(1);
        RETAINED[dev as usize]
            .fetch_update(SeqCst, SeqCst, less)
            .map(|_| ())
            .map_err(|_| Error::INVALID_CONTEXT)
    })
}

/// Whether a primary context is active.
pub unsafe extern "C" fn cuDevicePrimaryCtxGetState(
    dev: c_int,
    flags: *mut c_uint,
    active: *mut c_int,
) -> Status {
    call(|| {
        device(dev)?;
        // SAFETY: the caller gives valid places.
        unsafe {
            put(flags, 0)?;
            put(active, c_int::from(RETAINED[dev as usize].load(SeqCst) > 0))
        }
    })
}

/// Makes a context current to this thread.
pub unsafe extern "C" fn cuCtxSetCurrent(context: Handle) -> Status {
    call(|| {
        CURRENT.set(if context.is_null() {
            None
        } else {
            Some(ordinal(context)?)
        });
        Ok(())
    })
}

/// The current context of this thread, or null.
pub unsafe extern "C" fn cuCtxGetCurrent(context: *mut Handle) -> Status {
    // SAFETY: the caller gives a valid place.
    call(|| unsafe { put(context, CURRENT.get().map_or(std::ptr::null_mut(), handle)) })
}

/// The device of the current context.
pub unsafe extern "C" fn cuCtxGetDevice(dev: *mut c_int) -> Status {
    // SAFETY: the caller gives a valid place.
    call(|| unsafe { put(dev, current()? as c_int) })
}

/// Waits for everything: launches have run when they return. Forbidden while anything is captured.
pub unsafe extern "C" fn cuCtxSynchronize() -> Status {
    call(|| {
        let device = current()?;
        stream::forbid_all(device)?;
        order::host_waited_for_device(device);
        Ok(())
    })
}

/// Scheduling flags have no meaning here.
pub unsafe extern "C" fn cuCtxSetFlags(_flags: c_uint) -> Status {
    call(|| current().map(|_| ()))
}

/// Lowest and highest priority of streams.
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(
    least: *mut c_int,
    greatest: *mut c_int,
) -> Status {
    call(|| {
        current()?;
        for (place, value) in [(least, 0), (greatest, -5)] {
            if !place.is_null() {
                // SAFETY: not null, so the caller gives a valid place.
                unsafe { place.write(value) };
            }
        }
        Ok(())
    })
}

/// Limits of the context: the defaults of CUDA.
pub unsafe extern "C" fn cuCtxGetLimit(value: *mut usize, limit: c_uint) -> Status {
    call(|| {
        current()?;
        let v = match limit {
            0 => 1024,    // STACK_SIZE
            1 => 1 << 20, // PRINTF_FIFO_SIZE
            2 => 8 << 20, // MALLOC_HEAP_SIZE
            _ => return Err(Error::UNSUPPORTED_LIMIT),
        };
        // SAFETY: the caller gives a valid place.
        unsafe { put(value, v) }
    })
}
