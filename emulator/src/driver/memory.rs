//! Device memory, pinned host memory, copies and fills.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{LazyLock, Mutex};

use super::error::Error;
use super::graph::Node;
use super::order::{self, Work};
use super::{Handle, Status, call, context, lock, put, stream};
use crate::device::DEVICES;
use crate::memory::{self, Buffer};
use crate::report::{self, Check, Finding};

/// Allocates device memory.
pub unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, bytes: usize) -> Status {
    call(|| {
        let device = context::current()?;
        stream::forbid_unsafe_call()?;
        if bytes == 0 {
            return Err(Error::INVALID_VALUE);
        }
        let free = DEVICES[device].memory.saturating_sub(memory::used(device));
        if bytes as u64 > free.min(memory::LARGEST) {
            return Err(Error::OUT_OF_MEMORY);
        }
        let buffer = memory::allocate(device, bytes as u64, None, false);
        // SAFETY: the caller gives a valid place.
        unsafe { put(to, buffer.base) }
    })
}

/// Frees device memory.
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> Status {
    call(|| {
        context::current()?;
        if address == 0 {
            return Ok(());
        }
        stream::forbid_unsafe_call()?;
        if memory::free(address) {
            Ok(())
        } else {
            Err(Error::INVALID_VALUE)
        }
    })
}

/// Free and total memory of the current device.
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    call(|| {
        let device = context::current()?;
        let all = DEVICES[device].memory;
        // SAFETY: the caller gives valid places.
        unsafe {
            put(free, all.saturating_sub(memory::used(device)) as usize)?;
            put(total, all as usize)
        }
    })
}

/// Start and size of the allocation around an address.
pub unsafe extern "C" fn cuMemGetAddressRange_v2(
    base: *mut u64,
    size: *mut usize,
    address: u64,
) -> Status {
    call(|| {
        context::current()?;
        let (buffer, _) = memory::device_of(address).ok_or(Error::NOT_FOUND)?;
        // SAFETY: places that are not null are valid, by the caller.
        unsafe {
            if !base.is_null() {
                base.write(buffer.base);
            }
            if !size.is_null() {
                size.write(buffer.len as usize);
            }
        }
        Ok(())
    })
}

/// An attribute of an address.
pub unsafe extern "C" fn cuPointerGetAttribute(
    data: *mut c_void,
    attribute: c_uint,
    address: u64,
) -> Status {
    call(|| {
        let (buffer, device) = memory::device_of(address).ok_or(Error::INVALID_VALUE)?;
        // SAFETY: the caller gives a place of the attribute's type.
        unsafe {
            match attribute {
                1 => put(data.cast::<Handle>(), context::handle(device)), // CONTEXT
                2 => put(data.cast::<c_uint>(), 2),                       // MEMORY_TYPE: device
                3 => put(data.cast::<u64>(), address),                    // DEVICE_POINTER
                8 => put(data.cast::<u8>(), 0),                           // IS_MANAGED
                9 => put(data.cast::<c_int>(), device as c_int),          // DEVICE_ORDINAL
                11 => put(data.cast::<u64>(), buffer.base),               // RANGE_START_ADDR
                12 => put(data.cast::<usize>(), buffer.len as usize),     // RANGE_SIZE
                _ => {
                    eprintln!(
                        "cuda-emulator: cuPointerGetAttribute: unknown attribute {attribute}"
                    );
                    Err(Error::INVALID_VALUE)
                }
            }
        }
    })
}

/// Layouts of pinned host allocations.
static PINNED: LazyLock<Mutex<HashMap<usize, Layout>>> = LazyLock::new(Mutex::default);

fn is_pinned(address: usize) -> bool {
    let pinned = lock(&PINNED);
    let mut allocations = pinned.iter();
    allocations.any(|(&start, layout)| (start..start + layout.size()).contains(&address))
}

/// Allocates pinned host memory: ordinary memory, aligned to a page.
pub unsafe extern "C" fn cuMemHostAlloc(
    to: *mut *mut c_void,
    bytes: usize,
    _flags: c_uint,
) -> Status {
    call(|| {
        context::current()?;
        stream::forbid_unsafe_call()?;
        let layout = Layout::from_size_align(bytes, 4096).map_err(|_| Error::OUT_OF_MEMORY)?;
        if bytes == 0 {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: the size is not 0.
        let p = unsafe { alloc_zeroed(layout) };
        if p.is_null() {
            return Err(Error::OUT_OF_MEMORY);
        }
        lock(&PINNED).insert(p as usize, layout);
        // SAFETY: the caller gives a valid place.
        unsafe { put(to, p.cast()) }
    })
}

/// Frees pinned host memory.
pub unsafe extern "C" fn cuMemFreeHost(p: *mut c_void) -> Status {
    call(|| {
        context::current()?;
        let layout = lock(&PINNED)
            .remove(&(p as usize))
            .ok_or(Error::INVALID_VALUE)?;
        // SAFETY: it was allocated with this layout, and the entry is gone, so this happens once.
        unsafe { dealloc(p.cast(), layout) };
        Ok(())
    })
}

/// A range of device memory.
fn range(address: u64, bytes: usize) -> Result<(std::sync::Arc<Buffer>, u64), Error> {
    context::current()?;
    memory::range(address, bytes as u64).ok_or(Error::INVALID_VALUE)
}

/// Notes what a copy or fill touches; see [`order::touch`].
fn touch(
    work: Work,
    what: &str,
    buffer: &Buffer,
    offset: u64,
    bytes: usize,
    writes: bool,
) -> Result<(), Error> {
    order::touch(work, what, buffer, offset..offset + bytes as u64, writes).map_err(|message| {
        report::tell(&Finding::of_all(Check::StreamRace, what, message));
        Error::LAUNCH_FAILED
    })
}

/// # Safety
/// `host` has `bytes` readable bytes.
unsafe fn to_device(
    work: Work,
    device: u64,
    host: *const c_void,
    bytes: usize,
) -> Result<(), Error> {
    if bytes == 0 {
        return Ok(());
    }
    let (buffer, offset) = range(device, bytes)?;
    if host.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    touch(work, "copy to the device", &buffer, offset, bytes, true)?;
    // SAFETY: by this function's contract.
    buffer.copy_in(offset, unsafe {
        std::slice::from_raw_parts(host.cast(), bytes)
    });
    Ok(())
}

/// # Safety
/// `host` has `bytes` writable bytes.
unsafe fn to_host(work: Work, host: *mut c_void, device: u64, bytes: usize) -> Result<(), Error> {
    if bytes == 0 {
        return Ok(());
    }
    let (buffer, offset) = range(device, bytes)?;
    if host.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    touch(work, "copy to the host", &buffer, offset, bytes, false)?;
    // SAFETY: by this function's contract. The bytes may be uninitialised to the host's compiler,
    // but they come through a C interface, and only writes follow.
    buffer.copy_out(offset, unsafe {
        std::slice::from_raw_parts_mut(host.cast(), bytes)
    });
    Ok(())
}

fn between(work: Work, to: u64, from: u64, bytes: usize) -> Result<(), Error> {
    if bytes == 0 {
        return Ok(());
    }
    let (target, offset) = range(to, bytes)?;
    let (source, source_offset) = range(from, bytes)?;
    touch(work, "copy", &source, source_offset, bytes, false)?;
    touch(work, "copy", &target, offset, bytes, true)?;
    target.copy_from(offset, &source, source_offset, bytes as u64);
    Ok(())
}

/// Fills `count` elements of `width` bytes.
fn fill(work: Work, to: u64, value: u32, width: u8, count: usize) -> Result<(), Error> {
    if count == 0 {
        return Ok(());
    }
    if !to.is_multiple_of(u64::from(width)) {
        return Err(Error::INVALID_VALUE);
    }
    let bytes = count
        .checked_mul(usize::from(width))
        .ok_or(Error::INVALID_VALUE)?;
    let (buffer, offset) = range(to, bytes)?;
    touch(work, "fill", &buffer, offset, bytes, true)?;
    let bytes = value.to_le_bytes();
    if bytes[..usize::from(width)].iter().all(|b| *b == bytes[0]) {
        buffer.fill(offset, count as u64 * u64::from(width), bytes[0]);
        return Ok(());
    }
    for i in 0..count as u64 {
        let at = offset + i * u64::from(width);
        buffer.store(at, width, u64::from(value));
        buffer.mark_written(at, width);
    }
    Ok(())
}

/// Work of a stream on memory, now or as a node of the graph that is being captured.
#[derive(Clone, Copy)]
pub(crate) enum MemoryOp {
    ToDevice {
        to: u64,
        from: usize,
        bytes: usize,
    },
    ToHost {
        to: usize,
        from: u64,
        bytes: usize,
    },
    Between {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Fill {
        to: u64,
        value: u32,
        width: u8,
        count: usize,
    },
}

impl MemoryOp {
    /// Does the work.
    ///
    /// # Safety
    /// Host addresses are valid for the bytes that are copied.
    pub unsafe fn run(self, work: Work) -> Result<(), Error> {
        // SAFETY: by this function's contract.
        unsafe {
            match self {
                MemoryOp::ToDevice { to, from, bytes } => {
                    to_device(work, to, from as *const c_void, bytes)
                }
                MemoryOp::ToHost { to, from, bytes } => {
                    to_host(work, to as *mut c_void, from, bytes)
                }
                MemoryOp::Between { to, from, bytes } => between(work, to, from, bytes),
                MemoryOp::Fill {
                    to,
                    value,
                    width,
                    count,
                } => fill(work, to, value, width, count),
            }
        }
    }
}

/// # Safety
/// As [`MemoryOp::run`]; if the stream is being captured, until the graph has run for the last time.
unsafe fn on_stream(op: MemoryOp, on: Handle) -> Status {
    call(|| {
        context::current()?;
        let Some(work) = stream::enqueue(on, || Node::Memory(op))? else {
            return Ok(());
        };
        // SAFETY: by this function's contract.
        unsafe { op.run(work) }?;
        match op {
            // Into memory that is not pinned, CUDA has copied when it returns.
            MemoryOp::ToHost { to, .. } if !is_pinned(to) => stream::host_waits(on),
            _ => Ok(()),
        }
    })
}

/// # Safety
/// As [`MemoryOp::run`].
unsafe fn at_once(op: MemoryOp) -> Status {
    call(|| {
        context::current()?;
        stream::forbid_unsafe_call()?;
        // The copy is on the legacy stream. A copy to the host is complete when the call returns; other copies may still run.
        let legacy = stream::stream_id(std::ptr::null_mut())?;
        // SAFETY: by this function's contract.
        unsafe { op.run(order::begin(legacy)) }?;
        if matches!(op, MemoryOp::ToHost { .. }) {
            order::host_waited(&order::so_far(legacy));
        }
        Ok(())
    })
}

/// Host to device.
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> Status {
    // SAFETY: the caller answers for the host memory.
    unsafe {
        at_once(MemoryOp::ToDevice {
            to,
            from: from as usize,
            bytes,
        })
    }
}

/// Host to device, on a stream.
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    bytes: usize,
    on: Handle,
) -> Status {
    // SAFETY: the caller answers for the host memory.
    unsafe {
        on_stream(
            MemoryOp::ToDevice {
                to,
                from: from as usize,
                bytes,
            },
            on,
        )
    }
}

/// Device to host.
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> Status {
    // SAFETY: the caller answers for the host memory.
    unsafe {
        at_once(MemoryOp::ToHost {
            to: to as usize,
            from,
            bytes,
        })
    }
}

/// Device to host, on a stream.
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut c_void,
    from: u64,
    bytes: usize,
    on: Handle,
) -> Status {
    // SAFETY: the caller answers for the host memory.
    unsafe {
        on_stream(
            MemoryOp::ToHost {
                to: to as usize,
                from,
                bytes,
            },
            on,
        )
    }
}

/// Device to device.
pub unsafe extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> Status {
    // SAFETY: no host memory.
    unsafe { at_once(MemoryOp::Between { to, from, bytes }) }
}

/// Device to device, on a stream.
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(
    to: u64,
    from: u64,
    bytes: usize,
    on: Handle,
) -> Status {
    // SAFETY: no host memory.
    unsafe { on_stream(MemoryOp::Between { to, from, bytes }, on) }
}

/// Between devices, on a stream: all memory is one here.
pub unsafe extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    _to_context: Handle,
    from: u64,
    _from_context: Handle,
    bytes: usize,
    on: Handle,
) -> Status {
    // SAFETY: no host memory.
    unsafe { on_stream(MemoryOp::Between { to, from, bytes }, on) }
}

/// Fills bytes.
pub unsafe extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> Status {
    // SAFETY: no host memory.
    unsafe {
        at_once(MemoryOp::Fill {
            to,
            value: u32::from(value),
            width: 1,
            count,
        })
    }
}

/// Fills bytes, on a stream.
pub unsafe extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, on: Handle) -> Status {
    // SAFETY: no host memory.
    unsafe {
        on_stream(
            MemoryOp::Fill {
                to,
                value: u32::from(value),
                width: 1,
                count,
            },
            on,
        )
    }
}

/// Fills 16-bit words, on a stream.
pub unsafe extern "C" fn cuMemsetD16Async(to: u64, value: u16, count: usize, on: Handle) -> Status {
    // SAFETY: no host memory.
    unsafe {
        on_stream(
            MemoryOp::Fill {
                to,
                value: u32::from(value),
                width: 2,
                count,
            },
            on,
        )
    }
}

/// Fills 32-bit words.
pub unsafe extern "C" fn cuMemsetD32_v2(to: u64, value: u32, count: usize) -> Status {
    // SAFETY: no host memory.
    unsafe {
        at_once(MemoryOp::Fill {
            to,
            value,
            width: 4,
            count,
        })
    }
}

/// Fills 32-bit words, on a stream.
pub unsafe extern "C" fn cuMemsetD32Async(to: u64, value: u32, count: usize, on: Handle) -> Status {
    // SAFETY: no host memory.
    unsafe {
        on_stream(
            MemoryOp::Fill {
                to,
                value,
                width: 4,
                count,
            },
            on,
        )
    }
}
