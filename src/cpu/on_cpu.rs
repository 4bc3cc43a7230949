//! The traits that connect an op to its CPU code.

use super::call::{AnyCall, Gradients};
use crate::activation::Order;

/// The f32 formulas of an op.
pub trait OnCpu {
    /// Runs `call` with f for these parameters.
    fn on_cpu(&self, params: &[f32], call: AnyCall<'_, false>) -> Gradients;
}

/// The f32 formulas of the gated forms of an op.
pub trait GatedOnCpu: OnCpu {
    /// Runs `call` with G (order 1) or f (order 2) for these parameters.
    fn gated_on_cpu(&self, order: Order, params: &[f32], call: AnyCall<'_, true>) -> Gradients;
}
