//! How an op is computed on the CPU.

use super::call::{AnyCall, Gradients};
use crate::activation::Order;

/// An op's formulas in f32.
pub trait OnCpu {
    /// Runs `call` with f for these parameters.
    fn on_cpu(&self, params: &[f32], call: AnyCall<'_, false>) -> Gradients;
}

/// The same of an op that can gate.
pub trait GatedOnCpu: OnCpu {
    /// Runs `call` with G or f.
    fn gated_on_cpu(&self, order: Order, params: &[f32], call: AnyCall<'_, true>) -> Gradients;
}
