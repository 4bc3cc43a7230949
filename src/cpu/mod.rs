//! The ops on the CPU, near the speed of memory: the formulas and the semantics of the kernels, in vector
//! code for the instruction set that is found at run time, on the threads of rayon's current pool (feature
//! `rayon`).
//!
//! Tensors are slices of f32, f16 or bf16; arithmetic is f32, rounded once at the store. Parameters and their
//! gradients are f32, in the order of [`Activation::PARAMS`]; parameters at the end that are optional
//! ([`Activation::OPTIONAL`]) may be left out, with their gradients. Accuracy is that of
//! [`reference::ULPS_EXACT`](crate::reference::ULPS_EXACT), special values are those of the op.
//!
//! Activations are here; [`cross_entropy`] and [`goldfish`] have the losses, with the options of the device.
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

pub(crate) mod call;
mod convert;
pub mod cross_entropy;
mod expanded;
mod function;
pub mod goldfish;
mod map;
mod math;
mod simd;
mod xatlu;
mod xgelu;
mod xielu;
mod xsilu;

pub(crate) use convert::Convert;
pub(crate) use cross_entropy::RowLoops;
#[doc(hidden)]
pub use simd::InstructionSet;

use crate::activation::{Activation, Gated, Order};
use crate::dtype::Element;
use crate::error::{Result, check_length};
use call::{Call, Gradients};

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
/// [`Error::Length`](crate::Error::Length): y is not as long as x, or there is not one parameter for each that the
/// op needs.
/// Nothing is written then.
pub fn forward<A: Activation, T: Element>(
    op: &A,
    params: &[f32],
    x: &[T],
    y: &mut [T],
) -> Result<()> {
    check_params::<A>(params)?;
    check_length("y", x.len(), y.len())?;
    let call = Call::Forward {
        x: Some(x),
        v: &[],
        y,
    };
    op.on_cpu(params, call.into());
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
    let call = Call::Forward {
        x: None,
        v: &[],
        y: x,
    };
    op.on_cpu(params, call.into());
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
    check_length("dy", x.len(), dy.len())?;
    check_length("dx", x.len(), dx.len())?;
    check_backward::<A, T>(params, x, y.as_deref(), dparams)?;
    let tensors = Call::Backward {
        x,
        v: &[],
        dy: Some(dy),
        dx,
        dv: &mut [],
        y,
    };
    write(op.on_cpu(params, tensors.into()), dparams, accumulate);
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
    check_length("dy", x.len(), dy.len())?;
    check_backward::<A, T>(params, x, y.as_deref(), dparams)?;
    let tensors = Call::Backward {
        x,
        v: &[],
        dy: None,
        dx: dy,
        dv: &mut [],
        y,
    };
    write(op.on_cpu(params, tensors.into()), dparams, accumulate);
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
    check_length("v", x.len(), v.len())?;
    check_length("y", x.len(), y.len())?;
    let call = Call::Forward { x: Some(x), v, y };
    op.gated_on_cpu(order, params, call.into());
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
        check_length(what, x.len(), len)?;
    }
    check_backward::<A, T>(params, x, y.as_deref(), dparams)?;
    let tensors = Call::Backward {
        x,
        v,
        dy: Some(dy),
        dx,
        dv,
        y,
    };
    let gradients = op.gated_on_cpu(order, params, tensors.into());
    write(gradients, dparams, accumulate);
    Ok(())
}

fn check_params<A: Activation>(params: &[f32]) -> Result<()> {
    let most = A::PARAMS.len();
    let least = most - A::OPTIONAL;
    check_length("params", params.len().clamp(least, most), params.len())
}

/// What every backward checks.
fn check_backward<A: Activation, T>(
    params: &[f32],
    x: &[T],
    y: Option<&[T]>,
    dparams: &[f32],
) -> Result<()> {
    check_params::<A>(params)?;
    check_length("dparams", params.len(), dparams.len())?;
    y.map_or(Ok(()), |y| check_length("y", x.len(), y.len()))
}

fn write(gradients: Gradients, dparams: &mut [f32], accumulate: bool) {
    for (out, gradient) in dparams.iter_mut().zip(gradients) {
        *out = if accumulate {
            *out + gradient
        } else {
            gradient
        };
    }
}
