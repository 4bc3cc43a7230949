//! Calls of the activations on slices.

use super::call::{AnyCall, Call, Gradients};
use super::on_cpu::{GatedOnCpu, OnCpu};
use super::segment::{Out, Tensors};
use super::tensor::{Input, Output, Pair, PairMut};
use crate::activation::{Activation, Gated, Order, Signature, for_each_activation, sealed};
use crate::dtype::Element;
use crate::error::Result;
use crate::shape::Shape;

macro_rules! dispatch {
    (
        plain {$($plain:ident: $Plain:ident $params:tt;)*}
        gated {$($gated:ident: $Gated:ident $gated_params:tt;)*}
    ) => {
        /// Runs `call` with the function f of the op.
        fn run(op: &(impl sealed::Op + ?Sized), params: &[f32], call: AnyCall<'_, false>) -> Gradients {
            let op = op.concrete();
            $(if let Some(op) = op.downcast_ref::<crate::$Plain>() {
                return op.on_cpu(params, call);
            })*
            $(if let Some(op) = op.downcast_ref::<crate::$Gated>() {
                return op.on_cpu(params, call);
            })*
            unreachable!("every op is in the registry")
        }

        /// Runs `call` with the function G or f of the op.
        fn run_gated(
            op: &(impl sealed::Op + ?Sized),
            order: Order,
            params: &[f32],
            call: AnyCall<'_, true>,
        ) -> Gradients {
            let op = op.concrete();
            $(if let Some(op) = op.downcast_ref::<crate::$Gated>() {
                return op.gated_on_cpu(order, params, call);
            })*
            unreachable!("every op that can gate is in the registry")
        }
    };
}
for_each_activation!(dispatch);

/// Returns a call that computes y = f(x). x and y are f32, f16 or bf16 tensors of the same shape, and `params` are the f32
/// parameters in the order of [`Signature::params`](crate::Signature::params). [`run`](Forward::run) runs the call.
///
/// ```
/// use xact::{Xsilu, cpu};
///
/// let (x, mut y) = ([-1.0_f32, 0.0, 2.0], [0.0; 3]);
/// cpu::forward(&Xsilu, &x, &[0.25], &mut y).run()?;
/// # Ok::<(), xact::Error>(())
/// ```
pub fn forward<'a, A: Activation + ?Sized, T: Element>(
    op: &'a A,
    x: impl Into<Input<'a, T>>,
    params: &'a [f32],
    y: impl Into<Output<'a, T>>,
) -> Forward<'a, A, T> {
    Forward {
        op,
        x: Some(x.into()),
        params,
        y: y.into(),
    }
}

/// Returns a call that computes x = f(x) in place.
pub fn forward_in_place<'a, A: Activation + ?Sized, T: Element>(
    op: &'a A,
    x: impl Into<Output<'a, T>>,
    params: &'a [f32],
) -> Forward<'a, A, T> {
    Forward {
        op,
        x: None,
        params,
        y: x.into(),
    }
}

/// A call of [`forward`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct Forward<'a, A: ?Sized, T> {
    op: &'a A,
    /// `None` if x is in the buffer of y.
    x: Option<Input<'a, T>>,
    params: &'a [f32],
    y: Output<'a, T>,
}

impl<A: Activation + ?Sized, T: Element> Forward<'_, A, T> {
    /// Computes y.
    ///
    /// # Errors
    /// - [`Length`](crate::Error::Length): a tensor is not as long as x or does not fit into its slice, or the number of
    ///   parameters is wrong;
    /// - [`Shape`](crate::Error::Shape), [`Pitch`](crate::Error::Pitch), [`Groups`](crate::Error::Groups): the rows of a
    ///   tensor are wrong.
    ///
    /// Nothing is written when a call fails.
    pub fn run(self) -> Result<()> {
        let Forward { op, x, params, y } = self;
        op.signature().check_params(params.len())?;
        let given = [x.as_ref().and_then(Input::given), y.given()];
        let shape = Shape::of(x.as_ref().map_or(y.len(), Input::len), &given);
        let written = if x.is_some() { "y" } else { "x" };
        let tensors = Tensors {
            x: x.map(|x| x.check_rows("x", shape)).transpose()?,
            v: None,
            xv: None,
            dy: None,
            out: Out::Plain(y.check_rows(written, shape)?),
            y: None,
        };
        let call = Call {
            backward: false,
            rows: tensors.segments(),
        };
        run(op, params, call.into());
        Ok(())
    }
}

/// Returns a call that computes dx = dy·f′(x) and, if asked, the gradient of each parameter, Σ dy·∂f/∂p. x, dy and dx have
/// the same shape and element type.
pub fn backward<'a, A: Activation + ?Sized, T: Element>(
    op: &'a A,
    x: impl Into<Input<'a, T>>,
    dy: impl Into<Input<'a, T>>,
    params: &'a [f32],
    dx: impl Into<Output<'a, T>>,
) -> Backward<'a, A, T> {
    Backward {
        op,
        x: x.into(),
        dy: Some(dy.into()),
        params,
        dx: dx.into(),
        optional: OptionalOutputs::default(),
    }
}

/// Like [`backward`], but overwrites dy with dx.
pub fn backward_in_place<'a, A: Activation + ?Sized, T: Element>(
    op: &'a A,
    x: impl Into<Input<'a, T>>,
    dy: impl Into<Output<'a, T>>,
    params: &'a [f32],
) -> Backward<'a, A, T> {
    Backward {
        op,
        x: x.into(),
        dy: None,
        params,
        dx: dy.into(),
        optional: OptionalOutputs::default(),
    }
}

/// A call of [`backward`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct Backward<'a, A: ?Sized, T> {
    op: &'a A,
    x: Input<'a, T>,
    /// `None` if dy is in the buffer of dx.
    dy: Option<Input<'a, T>>,
    params: &'a [f32],
    dx: Output<'a, T>,
    optional: OptionalOutputs<'a, T>,
}

/// The optional outputs of a backward.
#[derive(Debug)]
struct OptionalOutputs<'a, T> {
    y: Option<Output<'a, T>>,
    dparams: Option<&'a mut [f32]>,
    accumulate: bool,
}

impl<T> Default for OptionalOutputs<'_, T> {
    fn default() -> Self {
        OptionalOutputs {
            y: None,
            dparams: None,
            accumulate: false,
        }
    }
}

impl<T> OptionalOutputs<'_, T> {
    fn check(&self, signature: &Signature, params: &[f32]) -> Result<()> {
        signature.check_params(params.len())?;
        match &self.dparams {
            Some(dparams) => signature.check_gradients(params.len(), dparams.len()),
            None => Ok(()),
        }
    }
}

/// The setters of the optional outputs of a backward.
macro_rules! optional_setters {
    () => {
        /// Sets an output for y = f(x) (or the gated y), which the backward then recomputes, so that a training stack needs
        /// to store only the inputs. It has the shape of x.
        pub fn y(mut self, y: impl Into<Output<'a, T>>) -> Self {
            self.optional.y = Some(y.into());
            self
        }

        /// Sets the output for the parameter gradients, which is overwritten: one f32 for each parameter of the call, where
        /// those of optional parameters may be left out.
        pub fn gradients(mut self, dparams: &'a mut [f32]) -> Self {
            self.optional.dparams = Some(dparams);
            self.optional.accumulate = false;
            self
        }

        /// Sets the outputs for the parameter gradients, which are added to their contents (gradient accumulation).
        pub fn accumulate(mut self, dparams: &'a mut [f32]) -> Self {
            self.optional.dparams = Some(dparams);
            self.optional.accumulate = true;
            self
        }
    };
}

impl<'a, A: Activation + ?Sized, T: Element> Backward<'a, A, T> {
    optional_setters!();

    /// Computes the gradients.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn run(self) -> Result<()> {
        let Backward {
            op,
            x,
            dy,
            params,
            dx,
            optional,
        } = self;
        optional.check(op.signature(), params)?;
        let OptionalOutputs {
            y,
            dparams,
            accumulate,
        } = optional;
        let shape = Shape::of(
            x.len(),
            &[
                x.given(),
                dy.as_ref().and_then(Input::given),
                dx.given(),
                y.as_ref().and_then(Output::given),
            ],
        );
        let in_place = if dy.is_some() { "dx" } else { "dy" };
        let tensors = Tensors {
            x: Some(x.check_rows("x", shape)?),
            v: None,
            xv: None,
            dy: dy.map(|dy| dy.check_rows("dy", shape)).transpose()?,
            out: Out::Plain(dx.check_rows(in_place, shape)?),
            y: y.map(|y| y.check_rows("y", shape)).transpose()?,
        };
        let call = Call {
            backward: true,
            rows: tensors.segments(),
        };
        write(run(op, params, call.into()), dparams, accumulate);
        Ok(())
    }
}

/// Returns a call that computes y = g(x)·v of a gate x and a value v, where g is G for [`Order::First`] and f for
/// [`Order::Second`]. x, v and y have the same shape and element type.
pub fn gated_forward<'a, A: Gated + ?Sized, T: Element>(
    op: &'a A,
    order: Order,
    xv: impl Into<Pair<'a, T>>,
    params: &'a [f32],
    y: impl Into<Output<'a, T>>,
) -> GatedForward<'a, A, T> {
    GatedForward {
        op,
        order,
        xv: xv.into(),
        params,
        y: y.into(),
    }
}

/// A call of [`gated_forward`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct GatedForward<'a, A: ?Sized, T> {
    op: &'a A,
    order: Order,
    xv: Pair<'a, T>,
    params: &'a [f32],
    y: Output<'a, T>,
}

impl<A: Gated + ?Sized, T: Element> GatedForward<'_, A, T> {
    /// Computes y.
    ///
    /// # Errors
    /// As [`Forward::run`], and [`Block`](crate::Error::Block) if gate and value cannot alternate in blocks
    /// of this length.
    pub fn run(self) -> Result<()> {
        let GatedForward {
            op,
            order,
            xv,
            params,
            y,
        } = self;
        op.signature().check_params(params.len())?;
        let shape = Shape::of(xv.len(), &[xv.given(), y.given()]);
        let xv = xv.check(shape)?;
        let tensors = Tensors {
            x: Some(xv.x),
            v: xv.v,
            xv: xv.interleaving,
            dy: None,
            out: Out::Plain(y.check_rows("y", shape)?),
            y: None,
        };
        let call = Call {
            backward: false,
            rows: tensors.segments(),
        };
        run_gated(op, order, params, call.into());
        Ok(())
    }
}

/// Returns a call that computes dx = dy·v·g′(x), dv = dy·g(x) and, if asked, the gradient of each parameter,
/// Σ dy·v·∂g/∂p. All tensors have the same shape and element type.
pub fn gated_backward<'a, A: Gated + ?Sized, T: Element>(
    op: &'a A,
    order: Order,
    xv: impl Into<Pair<'a, T>>,
    dy: impl Into<Input<'a, T>>,
    params: &'a [f32],
    dxv: impl Into<PairMut<'a, T>>,
) -> GatedBackward<'a, A, T> {
    GatedBackward {
        op,
        order,
        xv: Some(xv.into()),
        dy: dy.into(),
        params,
        dxv: dxv.into(),
        optional: OptionalOutputs::default(),
    }
}

/// Like [`gated_backward`], but overwrites x with dx and v with dv.
pub fn gated_backward_in_place<'a, A: Gated + ?Sized, T: Element>(
    op: &'a A,
    order: Order,
    xv: impl Into<PairMut<'a, T>>,
    dy: impl Into<Input<'a, T>>,
    params: &'a [f32],
) -> GatedBackward<'a, A, T> {
    GatedBackward {
        op,
        order,
        xv: None,
        dy: dy.into(),
        params,
        dxv: xv.into(),
        optional: OptionalOutputs::default(),
    }
}

/// A call of [`gated_backward`].
#[derive(Debug)]
#[must_use = "nothing is computed until `run`"]
pub struct GatedBackward<'a, A: ?Sized, T> {
    op: &'a A,
    order: Order,
    /// `None` if x and v are in the buffers of dx and dv.
    xv: Option<Pair<'a, T>>,
    dy: Input<'a, T>,
    params: &'a [f32],
    dxv: PairMut<'a, T>,
    optional: OptionalOutputs<'a, T>,
}

impl<'a, A: Gated + ?Sized, T: Element> GatedBackward<'a, A, T> {
    optional_setters!();

    /// Computes the gradients.
    ///
    /// # Errors
    /// As [`Forward::run`], and [`Block`](crate::Error::Block) if gate and value cannot alternate in blocks
    /// of this length.
    pub fn run(self) -> Result<()> {
        let GatedBackward {
            op,
            order,
            xv,
            dy,
            params,
            dxv,
            optional,
        } = self;
        optional.check(op.signature(), params)?;
        let OptionalOutputs {
            y,
            dparams,
            accumulate,
        } = optional;
        let shape = Shape::of(
            xv.as_ref().map_or(dxv.len(), Pair::len),
            &[
                xv.as_ref().and_then(Pair::given),
                dxv.given(),
                dy.given(),
                y.as_ref().and_then(Output::given),
            ],
        );
        let names = if xv.is_some() {
            ["dx", "dv"]
        } else {
            ["x", "v"]
        };
        let xv = xv.map(|xv| xv.check(shape)).transpose()?;
        let interleaving = xv.as_ref().and_then(|xv| xv.interleaving);
        let (x, v) = xv.map(|xv| (xv.x, xv.v)).unzip();
        let tensors = Tensors {
            x,
            v: v.flatten(),
            xv: interleaving,
            dy: Some(dy.check_rows("dy", shape)?),
            out: Out::Pair(dxv.check(names, shape)?),
            y: y.map(|y| y.check_rows("y", shape)).transpose()?,
        };
        let call = Call {
            backward: true,
            rows: tensors.segments(),
        };
        write(
            run_gated(op, order, params, call.into()),
            dparams,
            accumulate,
        );
        Ok(())
    }
}

fn write(gradients: Gradients, dparams: Option<&mut [f32]>, accumulate: bool) {
    for (out, gradient) in dparams.into_iter().flatten().zip(gradients) {
        *out = if accumulate {
            *out + gradient
        } else {
            gradient
        };
    }
}
