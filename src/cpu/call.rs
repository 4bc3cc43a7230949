//! A call of the elementwise loops: its tensors, cut into chunks.
//!
//! The loops are generic over the op and the type of the elements, and each pair is compiled for every
//! instruction set. That is done once, here in the crate: an op takes an [`AnyCall`], which is not generic.

use super::function::Function;
use super::map::{self, CHUNK, Sums, run_all};
use crate::activation::MAX_PARAMS;
use crate::dtype::{Dtype, Element};

/// The gradients of the parameters; of a forward there are none, and they are 0.
pub type Gradients = [f32; MAX_PARAMS];

/// The tensors of a call, all of one length; `v` and `dv` are empty unless gated.
pub enum Call<'a, T, const GATED: bool> {
    Forward {
        /// `None`: x is in y.
        x: Option<&'a [T]>,
        v: &'a [T],
        y: &'a mut [T],
    },
    Backward {
        x: &'a [T],
        v: &'a [T],
        /// `None`: dy is in dx.
        dy: Option<&'a [T]>,
        dx: &'a mut [T],
        dv: &'a mut [T],
        y: Option<&'a mut [T]>,
    },
}

/// A call with the type of its elements as a value.
pub enum AnyCall<'a, const GATED: bool> {
    F32(Call<'a, f32, GATED>),
    F16(Call<'a, half::f16, GATED>),
    Bf16(Call<'a, half::bf16, GATED>),
}

impl<'a, T: Element, const GATED: bool> From<Call<'a, T, GATED>> for AnyCall<'a, GATED> {
    fn from(call: Call<'a, T, GATED>) -> Self {
        match T::DTYPE {
            Dtype::F32 => AnyCall::F32(call.cast()),
            Dtype::F16 => AnyCall::F16(call.cast()),
            Dtype::Bf16 => AnyCall::Bf16(call.cast()),
        }
    }
}

impl<const GATED: bool> AnyCall<'_, GATED> {
    /// Runs the loops with `f`; `chain` has the factor from each sum to the gradient of the parameter as it
    /// is stored.
    pub fn run<F: Function>(self, f: F, chain: Gradients) -> Gradients {
        let sums = match self {
            AnyCall::F32(call) => call.run(f),
            AnyCall::F16(call) => call.run(f),
            AnyCall::Bf16(call) => call.run(f),
        };
        std::array::from_fn(|p| (f64::from(chain[p]) * sums[p]) as f32)
    }
}

impl<'a, T: Element, const GATED: bool> Call<'a, T, GATED> {
    /// The same tensors; `U` is `T`.
    fn cast<U: Element>(self) -> Call<'a, U, GATED> {
        use bytemuck::{cast_slice, cast_slice_mut};
        match self {
            Call::Forward { x, v, y } => Call::Forward {
                x: x.map(cast_slice),
                v: cast_slice(v),
                y: cast_slice_mut(y),
            },
            Call::Backward {
                x,
                v,
                dy,
                dx,
                dv,
                y,
            } => Call::Backward {
                x: cast_slice(x),
                v: cast_slice(v),
                dy: dy.map(cast_slice),
                dx: cast_slice_mut(dx),
                dv: cast_slice_mut(dv),
                y: y.map(cast_slice_mut),
            },
        }
    }

    fn run<F: Function>(self, f: F) -> Sums {
        match self {
            Call::Forward {
                mut x,
                mut v,
                mut y,
            } => run_all(y.len(), || {
                let y = first_mut(&mut y)?;
                Some(map::Forward::<F, T, GATED> {
                    f,
                    x: x.as_mut().and_then(first),
                    v: first(&mut v).unwrap_or_default(),
                    y,
                })
            }),
            Call::Backward {
                mut x,
                mut v,
                mut dy,
                mut dx,
                mut dv,
                mut y,
            } => run_all(x.len(), || {
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
            }),
        }
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
