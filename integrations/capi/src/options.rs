//! Converts the header's numbers to ops and their options.

#![allow(unsafe_code)]

use xact::{
    AnyActivation, Compat, CrossEntropy, Dtype, EpsGradient, Halves, Normalizer, Order, Parameters,
};

use crate::memory;
use crate::status::{Failure, Result};
use crate::types::*;

/// The failure for a number other than the named constants.
pub fn unknown(what: &str, got: i64, names: &str) -> Failure {
    let text = format!("{what} is {got}; it must be one of the {names} numbers");
    Failure::new(XACT_ERROR_ENUM, text)
}

/// The element type of an XACT_DTYPE number.
pub fn dtype(what: &str, number: i32) -> Result<Dtype> {
    match number {
        XACT_DTYPE_F32 => Ok(Dtype::F32),
        XACT_DTYPE_F16 => Ok(Dtype::F16),
        XACT_DTYPE_BF16 => Ok(Dtype::Bf16),
        other => Err(unknown(what, other.into(), "XACT_DTYPE")),
    }
}

/// The parameter type of an XACT_DTYPE number; 0 is f32.
pub fn param_dtype(number: i32) -> Result<Dtype> {
    match number {
        0 => Ok(Dtype::F32),
        _ => dtype("param_dtype", number),
    }
}

/// The order of an XACT_ORDER number; `None` for XACT_ORDER_PLAIN.
pub fn order(number: i32) -> Result<Option<Order>> {
    match number {
        XACT_ORDER_PLAIN => Ok(None),
        XACT_ORDER_FIRST => Ok(Some(Order::First)),
        XACT_ORDER_SECOND => Ok(Some(Order::Second)),
        other => Err(unknown("order", other.into(), "XACT_ORDER")),
    }
}

/// A flag, which must be 0 or 1.
pub fn flag(what: &str, number: i64) -> Result<bool> {
    match number {
        0 => Ok(false),
        1 => Ok(true),
        other => {
            let text = format!("{what} is {other}; it must be 0 or 1");
            Err(Failure::new(XACT_ERROR_ENUM, text))
        }
    }
}

/// A flag in a 64-bit field, which must be 0 or 1.
pub fn wide_flag(what: &str, number: u64) -> Result<bool> {
    flag(what, i64::try_from(number).unwrap_or(i64::MAX))
}

/// Which of gate and value is first and the length of the blocks in which they alternate; `None` if they do not.
pub fn interleaved(args: &xact_activation_args) -> Result<Option<(Halves, u64)>> {
    let order = match wide_flag("value_first", args.value_first)? {
        true => Halves::ValueFirst,
        false => Halves::GateFirst,
    };
    Ok((args.block != 0).then_some((order, args.block)))
}

/// The op of this name with its default options.
pub unsafe fn named(name: *const std::ffi::c_char) -> Result<AnyActivation> {
    // SAFETY: the caller vouches for the string.
    Ok(unsafe { memory::text("name", name) }?.parse()?)
}

/// An activation with the caller's options.
pub unsafe fn activation(op: *const xact_activation) -> Result<AnyActivation> {
    // SAFETY: the caller vouches for the struct.
    let given = unsafe { memory::read(op) }?;
    // SAFETY: and for its string.
    let op = unsafe { named(given.name) }?;
    let parameters = match given.parameters {
        XACT_PARAMETERS_RAW => Parameters::Raw,
        XACT_PARAMETERS_EFFECTIVE => Parameters::Effective,
        other => return Err(unknown("parameters", other.into(), "XACT_PARAMETERS")),
    };
    let gradient = match given.compat {
        XACT_COMPAT_NONE => None,
        XACT_COMPAT_ANALYTIC => Some(EpsGradient::Analytic),
        XACT_COMPAT_AUTOGRAD => Some(EpsGradient::Autograd),
        other => return Err(unknown("compat", other.into(), "XACT_COMPAT")),
    };
    Ok(match op {
        AnyActivation::Xielu(op) => {
            let op = op.beta(given.beta).parameters(parameters);
            match gradient {
                Some(gradient) => op.compat(Compat::new(given.eps).gradient(gradient)).into(),
                None => op.into(),
            }
        }
        op => op,
    })
}

/// The loss with the caller's options. Fails if one is out of range.
pub unsafe fn cross_entropy(op: *const xact_cross_entropy) -> Result<CrossEntropy> {
    // SAFETY: the caller vouches for the struct.
    let given = unsafe { memory::read(op) }?;
    let normalizer = match given.normalizer {
        XACT_NORMALIZER_KEPT => Normalizer::Kept,
        XACT_NORMALIZER_NONE => Normalizer::None,
        XACT_NORMALIZER_LABELS => Normalizer::Labels,
        XACT_NORMALIZER_WEIGHT => Normalizer::Weight,
        other => return Err(unknown("normalizer", other.into(), "XACT_NORMALIZER")),
    };
    let mut op = CrossEntropy::default()
        .ignore_index(given.ignore_index)
        .label_smoothing(given.label_smoothing)
        .z_loss(given.z_loss)
        .normalizer(normalizer)
        .dropped_loss(flag("dropped_loss", given.dropped_loss.into())?)
        .empty_is_nan(flag("empty_is_nan", given.empty_is_nan.into())?);
    if given.softcap != 0.0 {
        op = op.softcap(given.softcap);
    }
    if given.vocab != 0 {
        op = op.vocab(given.vocab);
    }
    op.check()?;
    Ok(op)
}

/// The first `count` of the names of scalars. Fails if there are fewer.
pub fn scalar_names(
    what: &'static str,
    names: &'static [&'static str],
    count: u64,
) -> Result<&'static [&'static str]> {
    usize::try_from(count)
        .ok()
        .and_then(|count| names.get(..count))
        .ok_or_else(|| {
            let expected = names.len() as u64;
            let got = count;
            xact::Error::Length {
                what,
                expected,
                got,
            }
            .into()
        })
}
