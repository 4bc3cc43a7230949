//! Memory: buffers that know which of their bytes were written, and the table of allocations.
//!
//! Allocations lie 64 GiB apart and their addresses are never used again, so that an address says
//! which buffer was meant even when it lies outside of it or after its end of life.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, RwLock};

use crate::device::DEVICES;
use crate::driver::order::Use;
use crate::shadow::Shadow;

/// Generic addresses of the windows of parameters, local and shared memory.
pub(crate) const PARAM_BASE: u64 = 1 << 40;
pub(crate) const LOCAL_BASE: u64 = 2 << 40;
pub(crate) const SHARED_BASE: u64 = 3 << 40;
/// Length of each of those windows.
pub(crate) const WINDOW: u64 = 1 << 32;

/// In the space of a cluster an address is one of a block's shared memory, with the number of the block above
/// these bits: 0 for the own one, or 1 and its rank.
const PEER_SHIFT: u32 = 24;

/// The address, in the space of a cluster, of what lies at a shared address in the block of a rank.
pub(crate) fn in_peer(address: u32, rank: u32) -> u32 {
    // Above the largest cluster all ranks are as wrong.
    address & ((1 << PEER_SHIFT) - 1) | (rank.min(0xfe) + 1) << PEER_SHIFT
}

/// The rank, if it is not that of the own block, and the shared address there.
pub(crate) fn of_peer(address: u64) -> (Option<u64>, u64) {
    (
        (address >> PEER_SHIFT).checked_sub(1),
        address & ((1 << PEER_SHIFT) - 1),
    )
}

/// Allocation `i` owns the addresses from `FIRST + i·SPAN` on; its first byte is in their middle.
const FIRST: u64 = 1 << 44;
const SPAN: u64 = 1 << 36;
/// Aligned to 256 bytes, as CUDA promises, and to no more.
const MIDDLE: u64 = SPAN / 2 + 256;

/// The largest allocation: at least as much again lies between its end and the next one's addresses.
pub(crate) const LARGEST: u64 = SPAN / 4;

/// State of a byte.
pub(crate) const NEVER_WRITTEN: u8 = 0;
pub(crate) const WRITTEN: u8 = 1;
pub(crate) const FORBIDDEN: u8 = 2;

/// A run of device memory. All accesses are relaxed atomics: two launches that race on it get
/// some value, never undefined behaviour.
pub(crate) struct Buffer {
    pub base: u64,
    pub len: u64,
    /// The name of the buffer in reports, if it has one.
    pub name: String,
    pub read_only: bool,
    data: Box<[AtomicU64]>,
    /// One byte of state per byte of data.
    state: Box<[AtomicU64]>,
    pub shadow: Shadow,
    /// The uses of the buffer by streams.
    pub uses: Mutex<Vec<Use>>,
}

/// Zeroed words, from pages that the system hands out when they are first touched.
pub(crate) fn zeroed(words: usize) -> Box<[AtomicU64]> {
    let v = vec![0u64; words].into_boxed_slice();
    // SAFETY: AtomicU64 has the size, alignment and valid bits of u64.
    unsafe { Box::from_raw(Box::into_raw(v) as *mut [AtomicU64]) }
}

impl Buffer {
    pub fn new(base: u64, len: u64, name: String) -> Self {
        let words = len.div_ceil(8) as usize;
        Buffer {
            base,
            len,
            name,
            read_only: false,
            data: zeroed(words),
            state: zeroed(words),
            shadow: Shadow::new(len),
            uses: Mutex::default(),
        }
    }

    /// Whether `offset .. offset + size` lies inside.
    #[inline(always)]
    pub fn contains(&self, offset: u64, size: u64) -> bool {
        offset <= self.len && size <= self.len - offset
    }

    /// Reads `width` (1, 2, 4 or 8) bytes at an offset that is a multiple of it and inside.
    #[inline(always)]
    pub fn load(&self, offset: u64, width: u8) -> u64 {
        read(&self.data, offset, width)
    }

    /// Writes; as [`Self::load`].
    #[inline(always)]
    pub fn store(&self, offset: u64, width: u8, value: u64) {
        write(&self.data, offset, width, value);
    }

    /// Whether `width` bytes at `offset` have all been written.
    #[inline(always)]
    pub fn is_written(&self, offset: u64, width: u8) -> bool {
        read(&self.state, offset, width) == 0x0101_0101_0101_0101 >> (64 - 8 * u32::from(width))
    }

    #[inline(always)]
    pub fn mark_written(&self, offset: u64, width: u8) {
        write(&self.state, offset, width, 0x0101_0101_0101_0101);
    }

    /// The state of one byte.
    pub fn state(&self, offset: u64) -> u8 {
        read(&self.state, offset, 1) as u8
    }

    /// Gives a range one state.
    pub fn set_state(&self, offset: u64, len: u64, state: u8) {
        fill_words(&self.state, offset, len, state);
    }

    /// Applies `f` atomically to the `width` bytes at `offset`; returns the old value.
    pub fn update(&self, offset: u64, width: u8, f: impl Fn(u64) -> u64) -> u64 {
        let word = &self.data[offset as usize / 8];
        let shift = offset % 8 * 8;
        let mask = u64::MAX >> (64 - 8 * u32::from(width)) << shift;
        let old = word
            .fetch_update(Relaxed, Relaxed, |w| {
                Some(w & !mask | f((w & mask) >> shift) << shift & mask)
            })
            .unwrap_or_else(|w| w);
        (old & mask) >> shift
    }

    /// Fills with a byte.
    pub fn fill(&self, offset: u64, len: u64, value: u8) {
        fill_words(&self.data, offset, len, value);
        self.set_state(offset, len, WRITTEN);
    }

    /// Writes bytes from the host.
    pub fn copy_in(&self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            if at.is_multiple_of(8) && rest.len() >= 8 {
                let (chunks, tail) = rest.as_chunks::<8>();
                for (word, chunk) in self.data[at as usize / 8..].iter().zip(chunks) {
                    word.store(u64::from_le_bytes(*chunk), Relaxed);
                }
                at += 8 * chunks.len() as u64;
                rest = tail;
            } else {
                write(&self.data, at, 1, u64::from(rest[0]));
                at += 1;
                rest = &rest[1..];
            }
        }
        self.set_state(offset, bytes.len() as u64, WRITTEN);
    }

    /// Reads bytes for the host. The bits of bytes that were never written are ones. On a device they would be arbitrary, and
    /// zeros would hide a kernel that omits a part of its output.
    pub fn copy_out(&self, offset: u64, bytes: &mut [u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            if at.is_multiple_of(8) && rest.len() >= 8 {
                let (chunks, tail) = rest.as_chunks_mut::<8>();
                let first = at as usize / 8;
                let words = self.data[first..].iter().zip(&self.state[first..]);
                for ((word, state), chunk) in words.zip(chunks.iter_mut()) {
                    let unwritten = !(state.load(Relaxed) * 0xff);
                    *chunk = (word.load(Relaxed) | unwritten).to_le_bytes();
                }
                at += 8 * chunks.len() as u64;
                rest = tail;
            } else {
                let unwritten = !(self.state(at) * 0xff);
                rest[0] = read(&self.data, at, 1) as u8 | unwritten;
                at += 1;
                rest = &mut rest[1..];
            }
        }
    }

    /// Copies between buffers, with the state of every byte.
    pub fn copy_from(&self, offset: u64, from: &Buffer, from_offset: u64, len: u64) {
        let mut bytes = vec![0; len.min(1 << 16) as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(bytes.len() as u64) as usize;
            from.copy_out(from_offset + done, &mut bytes[..n]);
            self.copy_in(offset + done, &bytes[..n]);
            done += n as u64;
        }
        let mut i = 0;
        while i < len {
            let aligned = (offset + i) & 7 == 0 && (from_offset + i) & 7 == 0 && len - i >= 8;
            let width = if aligned { 8 } else { 1 };
            write(
                &self.state,
                offset + i,
                width,
                read(&from.state, from_offset + i, width),
            );
            i += u64::from(width);
        }
    }
}

#[inline(always)]
fn read(words: &[AtomicU64], offset: u64, width: u8) -> u64 {
    assert!(offset as usize / 8 < words.len() && offset & (u64::from(width) - 1) == 0);
    let p = words.as_ptr().cast::<u8>();
    // SAFETY: the assertion puts the aligned access inside one word of the slice. Sizes are mixed
    // on the same memory, which every supported processor defines; no Rust reference to the bytes
    // exists beside these.
    unsafe {
        let p = p.add(offset as usize);
        match width {
            1 => u64::from((*p.cast::<AtomicU8>()).load(Relaxed)),
            2 => u64::from((*p.cast::<AtomicU16>()).load(Relaxed)),
            4 => u64::from((*p.cast::<AtomicU32>()).load(Relaxed)),
            _ => (*p.cast::<AtomicU64>()).load(Relaxed),
        }
    }
}

#[inline(always)]
fn write(words: &[AtomicU64], offset: u64, width: u8, value: u64) {
    assert!(offset as usize / 8 < words.len() && offset & (u64::from(width) - 1) == 0);
    let p = words.as_ptr().cast::<u8>();
    // SAFETY: as in `read`.
    unsafe {
        let p = p.add(offset as usize);
        match width {
            1 => (*p.cast::<AtomicU8>()).store(value as u8, Relaxed),
            2 => (*p.cast::<AtomicU16>()).store(value as u16, Relaxed),
            4 => (*p.cast::<AtomicU32>()).store(value as u32, Relaxed),
            _ => (*p.cast::<AtomicU64>()).store(value, Relaxed),
        }
    }
}

fn fill_words(words: &[AtomicU64], offset: u64, len: u64, value: u8) {
    let pattern = u64::from_ne_bytes([value; 8]);
    let (mut at, end) = (offset, offset + len);
    while at < end && (at % 8 != 0 || end - at < 8) {
        write(words, at, 1, pattern);
        at += 1;
    }
    for word in &words[(at / 8) as usize..(end / 8).max(at / 8) as usize] {
        word.store(pattern, Relaxed);
    }
    at = at.max(end / 8 * 8);
    while at < end {
        write(words, at, 1, pattern);
        at += 1;
    }
}

/// An entry of the table of allocations.
enum Slot {
    Live { buffer: Arc<Buffer>, device: usize },
    Freed { base: u64, len: u64 },
}

/// Bytes in live allocations, by device.
static USED: [AtomicU64; DEVICES.len()] = [const { AtomicU64::new(0) }; DEVICES.len()];

static TABLE: LazyLock<RwLock<Vec<Slot>>> = LazyLock::new(RwLock::default);

/// The buffer that an address belongs to.
pub(crate) enum Found {
    /// Inside a live buffer, or outside of it but nearer to it than to any other.
    Live {
        buffer: Arc<Buffer>,
        device: usize,
    },
    Freed {
        base: u64,
        len: u64,
    },
    Nothing,
}

fn index(address: u64) -> Option<usize> {
    address.checked_sub(FIRST).map(|a| (a / SPAN) as usize)
}

fn table() -> std::sync::RwLockReadGuard<'static, Vec<Slot>> {
    TABLE
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A new allocation on a device. The buffer comes back as well, to be initialised.
pub(crate) fn allocate(
    device: usize,
    len: u64,
    name: Option<&str>,
    read_only: bool,
) -> Arc<Buffer> {
    let mut slots = TABLE
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let i = slots.len();
    let name = name.map_or_else(|| format!("allocation #{i}"), |n| format!("`{n}`"));
    let mut buffer = Buffer::new(FIRST + i as u64 * SPAN + MIDDLE, len, name);
    buffer.read_only = read_only;
    let buffer = Arc::new(buffer);
    USED[device].fetch_add(len, Relaxed);
    slots.push(Slot::Live {
        buffer: buffer.clone(),
        device,
    });
    buffer
}

/// Frees the allocation that begins at `base`; false if there is none.
pub(crate) fn free(base: u64) -> bool {
    let mut slots = TABLE
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(slot) = index(base).and_then(|i| slots.get_mut(i)) else {
        return false;
    };
    match slot {
        Slot::Live { buffer, device } if buffer.base == base => {
            USED[*device].fetch_sub(buffer.len, Relaxed);
            *slot = Slot::Freed {
                base,
                len: buffer.len,
            };
            true
        }
        _ => false,
    }
}

/// Looks an address up.
pub(crate) fn find(address: u64) -> Found {
    match index(address).and_then(|i| {
        table().get(i).map(|s| match s {
            Slot::Live { buffer, device } => Found::Live {
                buffer: buffer.clone(),
                device: *device,
            },
            Slot::Freed { base, len } => Found::Freed {
                base: *base,
                len: *len,
            },
        })
    }) {
        Some(f) => f,
        None => Found::Nothing,
    }
}

/// The device of a live allocation that holds the address.
pub(crate) fn device_of(address: u64) -> Option<(Arc<Buffer>, usize)> {
    match table().get(index(address)?)? {
        Slot::Live { buffer, device } if buffer.contains(address.wrapping_sub(buffer.base), 0) => {
            Some((buffer.clone(), *device))
        }
        _ => None,
    }
}

/// The buffer of a live allocation, and the offset in it, if `len` bytes from the address on lie inside.
pub(crate) fn range(address: u64, len: u64) -> Option<(Arc<Buffer>, u64)> {
    match find(address) {
        Found::Live { buffer, .. } => {
            let offset = address.wrapping_sub(buffer.base);
            buffer.contains(offset, len).then_some((buffer, offset))
        }
        _ => None,
    }
}

/// Bytes in live allocations of a device.
pub(crate) fn used(device: usize) -> u64 {
    USED[device].load(Relaxed)
}
