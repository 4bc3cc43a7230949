//! [`Function`]: an op as a function of one element, which the loops call.

use crate::activation::MAX_PARAMS;

/// A function g at one x: g, g′, and upstream·∂g/∂p for each parameter. The factors are multiplied in an order in which no
/// intermediate overflows, so that the terms are 0 for a finite x and an upstream gradient of 0. The compiler removes fields
/// that are not used.
#[derive(Clone, Copy)]
pub struct Point {
    pub value: f32,
    pub slope: f32,
    pub terms: [f32; MAX_PARAMS],
}

/// An op with its parameters. `at` must be `#[inline(always)]` and branch-free, because it is compiled for each instruction
/// set in a loop that must become vector code.
pub trait Function: Copy + Send + Sync {
    /// The number of `Point::terms` in use.
    const PARAMS: usize;

    /// Evaluates the function at x.
    fn at(self, x: f32, upstream: f32) -> Point;

    /// Evaluates g alone, which may take another formula with other rounding errors.
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        self.at(x, 0.0).value
    }
}
