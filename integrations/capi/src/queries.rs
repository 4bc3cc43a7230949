//! The queries for ops, types, defaults and sizes.

#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::ptr;
use std::sync::OnceLock;

use xact::activation::NAMES;
use xact::{Activation, AnyActivation, Signature};

use crate::memory::{self, Struct};
use crate::options;
use crate::status::Result;
use crate::types::*;

/// The names of an op as C strings.
struct Names {
    name: CString,
    params: Vec<CString>,
    gradients: Vec<CString>,
    signature: &'static Signature,
}

/// The names of all ops, in their order.
fn names() -> &'static [Names] {
    static ALL: OnceLock<Vec<Names>> = OnceLock::new();
    ALL.get_or_init(|| {
        // Names are identifiers, so they contain no 0.
        let text = |text: &&str| CString::new(*text).unwrap_or_default();
        let ops = NAMES
            .iter()
            .filter_map(|name| name.parse::<AnyActivation>().ok());
        ops.map(|op| {
            let signature = op.signature();
            Names {
                name: text(&signature.name),
                params: signature.params.iter().map(text).collect(),
                gradients: signature.gradients.iter().map(text).collect(),
                signature,
            }
        })
        .collect()
    })
}

pub fn activation_count() -> u64 {
    NAMES.len() as u64
}

pub fn activation_name(index: u64) -> *const c_char {
    let names = usize::try_from(index)
        .ok()
        .and_then(|index| names().get(index));
    names.map_or(ptr::null(), |names| names.name.as_ptr())
}

pub unsafe fn describe(name: *const c_char, out: *mut xact_signature) -> Result<()> {
    // SAFETY: the caller vouches for the string.
    let op = unsafe { options::named(name) }?;
    let name = op.signature().name;
    for names in names().iter().filter(|names| names.signature.name == name) {
        let pointers = |texts: &[CString]| {
            let mut pointers = [ptr::null(); XACT_MAX_PARAMS];
            for (pointer, text) in pointers.iter_mut().zip(texts) {
                *pointer = text.as_ptr();
            }
            pointers
        };
        let signature = xact_signature {
            size: 0,
            name: names.name.as_ptr(),
            params: names.params.len() as u64,
            optional: names.signature.optional as u64,
            param_names: pointers(&names.params),
            gradient_names: pointers(&names.gradients),
            gated: names.signature.gated.into(),
        };
        // SAFETY: the caller vouches for the room.
        unsafe { memory::write_sized(out, signature) }?;
    }
    Ok(())
}

pub fn dtype_size(number: i32) -> u64 {
    options::dtype("dtype", number).map_or(0, |dtype| dtype.size())
}

pub fn id_size(number: i32) -> u64 {
    match number {
        XACT_ID_U8 => 1,
        XACT_ID_U16 => 2,
        XACT_ID_U32 | XACT_ID_I32 => 4,
        XACT_ID_I64 => 8,
        _ => 0,
    }
}

pub unsafe fn activation_init(
    op: *mut xact_activation,
    size: u64,
    name: *const c_char,
) -> Result<()> {
    // SAFETY: the caller vouches for the string.
    unsafe { options::named(name) }?;
    let value = xact_activation {
        name,
        ..xact_activation::absent()
    };
    // SAFETY: the caller vouches for the room.
    unsafe { memory::write(op, size, value) }
}

pub unsafe fn cross_entropy_init(op: *mut xact_cross_entropy, size: u64) -> Result<()> {
    // SAFETY: the caller vouches for the room.
    unsafe { memory::write(op, size, xact_cross_entropy::absent()) }
}

pub unsafe fn saved_bytes(op: *const xact_cross_entropy, rows: u64, bytes: *mut u64) -> Result<()> {
    // SAFETY: the caller vouches for both.
    unsafe {
        let op = options::cross_entropy(op)?;
        memory::put("bytes", bytes, op.saved_bytes(rows))
    }
}
