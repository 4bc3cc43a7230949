//! Arithmetic of one lane: exact floating point, conversions, approximations.

pub(crate) mod approx;
pub(crate) mod atomic;
pub(crate) mod float;
pub(crate) mod half;
