//! The ops on the CPU, near the speed of memory: the formulas and the semantics of the kernels, in vector
//! code for the instruction set that is found at run time, on the threads of rayon's current pool (feature
//! `rayon`).
//!
//! Tensors are slices of f32, f16 or bf16; arithmetic is f32, rounded once at the store. Parameters and their
//! gradients are f32, in the order of [`Activation::PARAMS`]; parameters at the end that are optional
//! ([`Activation::OPTIONAL`]) may be left out, with their gradients. Accuracy is that of
//! [`reference::ULPS_EXACT`](crate::reference::ULPS_EXACT), special values are those of the op.
//!
//! The same input gives the same bits, whatever the number of threads and the instruction set. On x86-64
//! without FMA, results are right but slow.
//!
//! ```
//! use xact::{Xielu, cpu};
//!
//! let op = Xielu::default();
//! let params = [0.2034, -1.0502];
//! let x = [-1.0_f32, 0.0, 2.0];
//! let mut y = [0.0; 3];
//! cpu::forward(&op, &params, &x, &mut y)?;
//!
//! let (dy, mut dx, mut dparams) = ([1.0; 3], [0.0; 3], [0.0; 2]);
//! cpu::backward(&op, &params, cpu::Backward {
//!     x: &x,
//!     dy: &dy,
//!     dx: &mut dx,
//!     y: None,
//!     dparams: &mut dparams,
//!     accumulate: false,
//! })?;
//! # Ok::<(), xact::Error>(())
//! ```

mod convert;
pub mod cross_entropy;
pub(crate) mod expanded;
pub(crate) mod function;
pub mod goldfish;
mod map;
mod math;
mod simd;
pub(crate) mod xatlu;
pub(crate) mod xgelu;
pub(crate) mod xielu;
pub(crate) mod xsilu;

pub(crate) use convert::Convert;
pub(crate) use cross_entropy::RowLoops;
#[doc(hidden)]
pub use simd::InstructionSet;

use crate::activation::{Activation, Gated, MAX_PARAMS, Order};
use crate::dtype::Element;
use crate::error::{Error, Result};
use function::{Function, Use};
use map::{CHUNK, Sums, run_all};

/// The tensors of [`backward`].
#[derive(Debug)]
pub struct Backward<'a, T> {
    /// Input of the forward.
    pub x: &'a [T],
    /// Gradient with respect to y, as long as x.
    pub dy: &'a [T],
    /// Gradient with respect to x, as long, overwritten.
    pub dx: &'a mut [T],
    /// If given, as long as x: y is computed again and written here.
    pub y: Option<&'a mut [T]>,
    /// The gradients of the parameters, one for each that is given.
    pub dparams: &'a mut [f32],
    /// Add to what is in `dparams` (gradient accumulation), or overwrite it.
    pub accumulate: bool,
}

/// The tensors of [`backward_in_place`].
#[derive(Debug)]
pub struct BackwardInPlace<'a, T> {
    /// Input of the forward.
    pub x: &'a [T],
    /// Gradient with respect to y, as long as x; overwritten with that with respect to x.
    pub dy: &'a mut [T],
    /// If given, as long as x: y is computed again and written here.
    pub y: Option<&'a mut [T]>,
    /// The gradients of the parameters, one for each that is given.
    pub dparams: &'a mut [f32],
    /// Add to what is in `dparams` (gradient accumulation), or overwrite it.
    pub accumulate: bool,
}

/// The tensors of [`gated_backward`].
#[derive(Debug)]
pub struct GatedBackward<'a, T> {
    /// Gate of the forward.
    pub x: &'a [T],
    /// Value of the forward, as long as x.
    pub v: &'a [T],
    /// Gradient with respect to y, as long as x.
    pub dy: &'a [T],
    /// Gradient with respect to x, as long, overwritten.
    pub dx: &'a mut [T],
    /// Gradient with respect to v, as long, overwritten.
    pub dv: &'a mut [T],
    /// If given, as long as x: y is computed again and written here.
    pub y: Option<&'a mut [T]>,
    /// The gradients of the parameters, one for each that is given.
    pub dparams: &'a mut [f32],
    /// Add to what is in `dparams` (gradient accumulation), or overwrite it.
    pub accumulate: bool,
}

/// y = f(x), for x of any length.
///
/// # Errors
/// [`Error::Length`]: y is not as long as x, or there is not one parameter for each that the op needs.
/// Nothing is written then.
pub fn forward<A: Activation, T: Element>(
    op: &A,
    params: &[f32],
    x: &[T],
    y: &mut [T],
) -> Result<()> {
    check_params::<A>(params)?;
    check("y", x.len(), y.len())?;
    op.function(
        params,
        ForwardCall::<T, false> {
            x: Some(x),
            v: &[],
            y,
        },
    );
    Ok(())
}

/// x = f(x), in place.
///
/// # Errors
/// As [`forward`].
pub fn forward_in_place<A: Activation, T: Element>(
    op: &A,
    params: &[f32],
    x: &mut [T],
) -> Result<()> {
    check_params::<A>(params)?;
    op.function(
        params,
        ForwardCall::<T, false> {
            x: None,
            v: &[],
            y: x,
        },
    );
    Ok(())
}

/// dx = dy·f′(x), and the gradient of each parameter, Σ dy·∂f/∂p.
///
/// # Errors
/// As [`forward`], for each tensor.
pub fn backward<A: Activation, T: Element>(
    op: &A,
    params: &[f32],
    call: Backward<'_, T>,
) -> Result<()> {
    let Backward {
        x,
        dy,
        dx,
        y,
        dparams,
        accumulate,
    } = call;
    check("dy", x.len(), dy.len())?;
    check("dx", x.len(), dx.len())?;
    let tensors = BackwardCall::<T, false> {
        x,
        v: &[],
        dy: Some(dy),
        dx,
        dv: &mut [],
        y,
    };
    tensors.checked::<A>(params, dparams)?;
    write(op.function(params, tensors), dparams, accumulate);
    Ok(())
}

/// dy = dy·f′(x), in place, and the gradient of each parameter.
///
/// # Errors
/// As [`forward`], for each tensor.
pub fn backward_in_place<A: Activation, T: Element>(
    op: &A,
    params: &[f32],
    call: BackwardInPlace<'_, T>,
) -> Result<()> {
    let BackwardInPlace {
        x,
        dy,
        y,
        dparams,
        accumulate,
    } = call;
    check("dy", x.len(), dy.len())?;
    let tensors = BackwardCall::<T, false> {
        x,
        v: &[],
        dy: None,
        dx: dy,
        dv: &mut [],
        y,
    };
    tensors.checked::<A>(params, dparams)?;
    write(op.function(params, tensors), dparams, accumulate);
    Ok(())
}

/// y = g(x)·v, with g = G or f by `order`.
///
/// # Errors
/// As [`forward`], for each tensor.
pub fn gated_forward<A: Gated, T: Element>(
    op: &A,
    order: Order,
    params: &[f32],
    x: &[T],
    v: &[T],
    y: &mut [T],
) -> Result<()> {
    check_params::<A>(params)?;
    check("v", x.len(), v.len())?;
    check("y", x.len(), y.len())?;
    let call = ForwardCall::<T, true> { x: Some(x), v, y };
    match order {
        Order::First => op.gate(params, call),
        Order::Second => op.function(params, call),
    }
    Ok(())
}

/// dx = dy·v·g′(x), dv = dy·g(x), and the gradient of each parameter, Σ dy·v·∂g/∂p.
///
/// # Errors
/// As [`forward`], for each tensor.
pub fn gated_backward<A: Gated, T: Element>(
    op: &A,
    order: Order,
    params: &[f32],
    call: GatedBackward<'_, T>,
) -> Result<()> {
    let GatedBackward {
        x,
        v,
        dy,
        dx,
        dv,
        y,
        dparams,
        accumulate,
    } = call;
    for (what, len) in [
        ("v", v.len()),
        ("dy", dy.len()),
        ("dx", dx.len()),
        ("dv", dv.len()),
    ] {
        check(what, x.len(), len)?;
    }
    let tensors = BackwardCall::<T, true> {
        x,
        v,
        dy: Some(dy),
        dx,
        dv,
        y,
    };
    tensors.checked::<A>(params, dparams)?;
    let gradients = match order {
        Order::First => op.gate(params, tensors),
        Order::Second => op.function(params, tensors),
    };
    write(gradients, dparams, accumulate);
    Ok(())
}

fn check(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Length {
        what,
        expected: expected as u64,
        got: got as u64,
    })
}

fn check_params<A: Activation>(params: &[f32]) -> Result<()> {
    let most = A::PARAMS.len();
    let least = most - A::OPTIONAL;
    check("params", params.len().clamp(least, most), params.len())
}

fn write(gradients: [f32; MAX_PARAMS], dparams: &mut [f32], accumulate: bool) {
    for (out, gradient) in dparams.iter_mut().zip(gradients) {
        *out = if accumulate {
            *out + gradient
        } else {
            gradient
        };
    }
}

struct ForwardCall<'a, T, const GATED: bool> {
    x: Option<&'a [T]>,
    v: &'a [T],
    y: &'a mut [T],
}

impl<T: Element, const GATED: bool> Use for ForwardCall<'_, T, GATED> {
    type Output = ();

    fn with<F: Function>(self, f: F, _chain: [f32; MAX_PARAMS]) {
        let ForwardCall {
            mut x,
            mut v,
            mut y,
        } = self;
        run_all(y.len(), || {
            let y = first_mut(&mut y)?;
            Some(map::Forward::<F, T, GATED> {
                f,
                x: x.as_mut().and_then(first),
                v: first(&mut v).unwrap_or_default(),
                y,
            })
        });
    }
}

struct BackwardCall<'a, T, const GATED: bool> {
    x: &'a [T],
    v: &'a [T],
    dy: Option<&'a [T]>,
    dx: &'a mut [T],
    dv: &'a mut [T],
    y: Option<&'a mut [T]>,
}

impl<T, const GATED: bool> BackwardCall<'_, T, GATED> {
    /// What remains to be checked of every backward.
    fn checked<A: Activation>(&self, params: &[f32], dparams: &[f32]) -> Result<()> {
        check_params::<A>(params)?;
        check("dparams", params.len(), dparams.len())?;
        self.y
            .as_ref()
            .map_or(Ok(()), |y| check("y", self.x.len(), y.len()))
    }
}

impl<T: Element, const GATED: bool> Use for BackwardCall<'_, T, GATED> {
    type Output = [f32; MAX_PARAMS];

    fn with<F: Function>(self, f: F, chain: [f32; MAX_PARAMS]) -> [f32; MAX_PARAMS] {
        let BackwardCall {
            mut x,
            mut v,
            mut dy,
            mut dx,
            mut dv,
            mut y,
        } = self;
        let sums: Sums = run_all(x.len(), || {
            let x = first(&mut x)?;
            Some(map::Backward::<F, T, GATED> {
                f,
                x,
                v: first(&mut v).unwrap_or_default(),
                dy: dy.as_mut().and_then(first),
                dx: first_mut(&mut dx).unwrap_or_default(),
                dv: first_mut(&mut dv).unwrap_or_default(),
                y: y.as_mut().and_then(first_mut),
            })
        });
        std::array::from_fn(|p| (f64::from(chain[p]) * sums[p]) as f32)
    }
}

/// Takes a chunk off; `None` if there is nothing left.
fn first<'a, T>(rest: &mut &'a [T]) -> Option<&'a [T]> {
    let len = rest.len().min(CHUNK);
    if len == 0 {
        None
    } else {
        rest.split_off(..len)
    }
}

/// The same of what is written.
fn first_mut<'a, T>(rest: &mut &'a mut [T]) -> Option<&'a mut [T]> {
    let len = rest.len().min(CHUNK);
    if len == 0 {
        None
    } else {
        rest.split_off_mut(..len)
    }
}
