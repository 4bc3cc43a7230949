//! Access to the caller's memory: structs that begin with their size, strings, arrays and results.
//!
//! All unsafe functions here have the same condition: a pointer is null, or points to what the header says, and no other
//! code writes there until the call has returned.

#![allow(unsafe_code)]

use std::borrow::Cow;
use std::ffi::{CStr, c_char};
use std::mem;

use xact::Error;
use xact::span::Span;

use crate::status::{Failure, Result};
use crate::types::*;

/// An upper bound in bytes on the size of every version of a struct.
const MAX_SIZE: u64 = 4096;

/// A struct of the header that begins with `size`.
///
/// # Safety
/// The struct has only numbers and pointers and no padding, so any bytes are a value. It begins with the u64 `size`.
pub unsafe trait Struct: Copy {
    /// The name of the struct, for error texts.
    const NAME: &'static str;

    /// The values of the fields that an older struct of the caller does not have: all 0.
    fn absent() -> Self {
        // SAFETY: any bytes are a value.
        unsafe { mem::zeroed() }
    }
}

macro_rules! structs {
    ($($name:ident),*) => {$(
        // SAFETY: the test of the layout sees to it.
        unsafe impl Struct for $name {
            const NAME: &'static str = stringify!($name);
        }
    )*};
}
structs!(
    xact_activation_args,
    xact_cross_entropy_args,
    xact_decision,
    xact_goldfish_args,
    xact_goldfish_strategy,
    xact_linear_cross_entropy_args,
    xact_signature
);

// SAFETY: as above.
unsafe impl Struct for xact_activation {
    const NAME: &'static str = "xact_activation";

    fn absent() -> Self {
        xact_activation {
            size: size_of::<Self>() as u64,
            name: std::ptr::null(),
            beta: 0.5,
            parameters: XACT_PARAMETERS_RAW,
            compat: XACT_COMPAT_NONE,
            eps: -1e-6,
        }
    }
}

// SAFETY: as above.
unsafe impl Struct for xact_cross_entropy {
    const NAME: &'static str = "xact_cross_entropy";

    fn absent() -> Self {
        xact_cross_entropy {
            size: size_of::<Self>() as u64,
            ignore_index: -100,
            vocab: 0,
            label_smoothing: 0.0,
            z_loss: 0.0,
            softcap: 0.0,
            normalizer: XACT_NORMALIZER_KEPT,
            dropped_loss: 0,
            empty_is_nan: 0,
        }
    }
}

/// Fails unless `size` is a multiple of 8 from 8 to [`MAX_SIZE`].
fn check_size<T: Struct>(size: u64) -> Result<()> {
    if !(8..=MAX_SIZE).contains(&size) || !size.is_multiple_of(8) {
        let name = T::NAME;
        let text = format!("{name}.size is {size}; set it to sizeof({name})");
        return Err(Failure::new(XACT_ERROR_STRUCT_SIZE, text));
    }
    Ok(())
}

/// Fails if the pointer is null or misaligned for `T`.
pub fn check_place<T>(what: &'static str, ptr: *const T) -> Result<()> {
    Span::new(what, ptr.addr() as u64, 1, 1, 1, align_of::<T>() as u64)?;
    Ok(())
}

/// Reads the caller's struct, which may be older or newer than the library's. Fails if a field that the library does not
/// know is not 0.
pub unsafe fn read<T: Struct>(ptr: *const T) -> Result<T> {
    check_place(T::NAME, ptr)?;
    // SAFETY: every version begins with its size.
    let size = unsafe { ptr.cast::<u64>().read() };
    check_size::<T>(size)?;
    let (size, known) = (size as usize, size_of::<T>());
    // SAFETY: the caller's struct has `size` bytes.
    let bytes = unsafe { std::slice::from_raw_parts(ptr.cast::<u8>(), size) };
    if bytes.iter().skip(known).any(|&byte| byte != 0) {
        let text = format!(
            "{} has fields that this version of xact, {}, does not know; the library is older than the header",
            T::NAME,
            env!("CARGO_PKG_VERSION")
        );
        return Err(Failure::new(XACT_ERROR_STRUCT_SIZE, text));
    }
    let mut value = T::absent();
    // SAFETY: both have at least this number of bytes, and any bytes are a value.
    unsafe {
        let value = (&raw mut value).cast::<u8>();
        value.copy_from_nonoverlapping(bytes.as_ptr(), size.min(known));
    }
    Ok(value)
}

/// Writes a struct to the caller's memory of `size` bytes. Fields that only the caller's version has become 0.
pub unsafe fn write<T: Struct>(ptr: *mut T, size: u64, value: T) -> Result<()> {
    check_place(T::NAME, ptr)?;
    check_size::<T>(size)?;
    let (room, known) = (size as usize, size_of::<T>());
    // SAFETY: the caller has memory for `size` bytes, and the struct begins with its size.
    unsafe {
        ptr.cast::<u8>().write_bytes(0, room);
        let value = (&raw const value).cast::<u8>();
        ptr.cast::<u8>()
            .copy_from_nonoverlapping(value, room.min(known));
        ptr.cast::<u64>().write(size);
    }
    Ok(())
}

/// Writes a struct whose `size` the caller has set.
pub unsafe fn write_sized<T: Struct>(ptr: *mut T, value: T) -> Result<()> {
    check_place(T::NAME, ptr)?;
    // SAFETY: the caller has set the size, and has memory of that size.
    unsafe { write(ptr, ptr.cast::<u64>().read(), value) }
}

/// Writes one result.
pub unsafe fn put<T>(what: &'static str, ptr: *mut T, value: T) -> Result<()> {
    check_place(what, ptr)?;
    // SAFETY: the caller has memory for a `T` there.
    unsafe { ptr.write(value) };
    Ok(())
}

/// The object behind a handle.
pub unsafe fn handle<'a, T>(what: &'static str, ptr: *const T) -> Result<&'a T> {
    check_place(what, ptr)?;
    // SAFETY: the caller got it from this library, and has not freed it.
    Ok(unsafe { &*ptr })
}

/// A string of the caller. Bytes that are not UTF-8 are replaced; names are ASCII, so no name matches then.
pub unsafe fn text<'a>(what: &'static str, ptr: *const c_char) -> Result<Cow<'a, str>> {
    if ptr.is_null() {
        return Err(Failure::null(what));
    }
    // SAFETY: the string ends with a 0.
    Ok(unsafe { CStr::from_ptr(ptr) }.to_string_lossy())
}

/// The span of `len` elements. Fails if they have more bytes than a slice can have.
pub fn span<T>(what: &'static str, ptr: *const T, len: u64) -> Result<Span> {
    let span = Span::new(what, ptr.addr() as u64, 1, len, len, size_of::<T>() as u64)?;
    check_addressable(&span, len)?;
    Ok(span)
}

/// Fails if the span has more bytes than a slice can have.
pub fn check_addressable(span: &Span, len: u64) -> Result<()> {
    let range = span.range();
    if isize::try_from(range.end - range.start).is_err() {
        return Err(Error::TooLarge { rows: 1, cols: len }.into());
    }
    Ok(())
}

/// A slice of `len` elements. If `len` is 0, the pointer may be null.
pub unsafe fn array<'a, T>(what: &'static str, ptr: *const T, len: u64) -> Result<&'a [T]> {
    span(what, ptr, len)?;
    if len == 0 {
        return Ok(&[]);
    }
    // SAFETY: the pointer is not null and aligned, and the caller vouches for `len` elements.
    Ok(unsafe { std::slice::from_raw_parts(ptr, len as usize) })
}
