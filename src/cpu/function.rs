//! What an op is to the loops: a function of one element.

use crate::activation::MAX_PARAMS;

/// A function g at one x: g, g′, and upstream·∂g/∂p for each parameter, multiplied in such an order that nothing
/// overflows on the way: of a finite x and an upstream gradient of 0 the terms are 0. What is not used of it costs
/// nothing.
#[derive(Clone, Copy)]
pub struct Point {
    pub value: f32,
    pub slope: f32,
    pub terms: [f32; MAX_PARAMS],
}

/// An op with its parameters. `at` must be `#[inline(always)]` and branch-free: it is compiled once for each
/// instruction set, in a loop that becomes vector code.
pub trait Function: Copy + Send + Sync {
    /// How many of `Point::terms` are in use.
    const PARAMS: usize;

    /// The function at x.
    fn at(self, x: f32, upstream: f32) -> Point;
}
