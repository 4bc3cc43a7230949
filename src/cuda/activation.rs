//! Calls of activations on device buffers. A call borrows all its buffers until the launch, checks what the types do not
//! guarantee, and takes device pointers only after all checks have passed.

#![allow(unsafe_code)] // the safe calls of `raw`; each block says what it guarantees

use super::device::Device;
use super::params::{Gradients, Params};
use super::queue::{Parts, Queue};
use super::raw;
use super::tensor::{Addresses, Input, Output, Pair, PairMut};
use crate::activation::{Activation, Gated, Order, Signature};
use crate::dtype::{Element, ParamOf};
use crate::error::Result;
use crate::shape::{Rows, Shape};

/// Returns a call that computes y = f(x). x and y are f32, f16 or bf16 tensors of the same shape, and the parameters are
/// f32 or of the type of x. [`launch`](Forward::launch) launches the call.
///
/// ```no_run
/// # use xact::{Queue, Xielu, cuda, cudarc::driver::CudaContext};
/// # let stream = CudaContext::new(0)?.new_stream()?;
/// # let mut queue = Queue::new(&stream)?;
/// # let (x, mut y) = (stream.alloc_zeros::<f32>(3)?, stream.alloc_zeros::<f32>(3)?);
/// # let (alpha_p, alpha_n) = (stream.alloc_zeros::<f32>(1)?, stream.alloc_zeros::<f32>(1)?);
/// let xielu = Xielu::default();
/// cuda::forward(&xielu, &x, Xielu::params(&alpha_p, &alpha_n), &mut y).launch(&mut queue)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn forward<'a, A: Activation + ?Sized, T: Element, P: ParamOf<T>>(
    op: &'a A,
    x: impl Into<Input<'a, T>>,
    params: Params<'a, A, P>,
    y: impl Into<Output<'a, T>>,
) -> Forward<'a, A, T, P> {
    Forward {
        op,
        x: Some(x.into()),
        params,
        y: y.into(),
    }
}

/// Returns a call that computes x = f(x) in place.
pub fn forward_in_place<'a, A: Activation + ?Sized, T: Element, P: ParamOf<T>>(
    op: &'a A,
    x: impl Into<Output<'a, T>>,
    params: Params<'a, A, P>,
) -> Forward<'a, A, T, P> {
    Forward {
        op,
        x: None,
        params,
        y: x.into(),
    }
}

/// A call of [`forward`].
#[must_use = "nothing is launched until `launch`"]
pub struct Forward<'a, A: ?Sized, T, P> {
    op: &'a A,
    /// `None` if x is in the buffer of y.
    x: Option<Input<'a, T>>,
    params: Params<'a, A, P>,
    y: Output<'a, T>,
}

impl<A: Activation + ?Sized, T: Element, P: ParamOf<T>> Forward<'_, A, T, P> {
    /// Launches the call on the stream of the queue.
    ///
    /// # Errors
    /// - [`Length`](crate::Error::Length): a tensor is not as long as x or does not fit into its buffer, a parameter is not
    ///   one element, or the number of parameters is wrong;
    /// - [`Shape`](crate::Error::Shape), [`Pitch`](crate::Error::Pitch), [`Groups`](crate::Error::Groups),
    ///   [`TooLarge`](crate::Error::TooLarge): the rows of a tensor are wrong;
    /// - [`Overlap`](crate::Error::Overlap), [`WrongContext`](crate::Error::WrongContext),
    ///   [`WrongThread`](crate::Error::WrongThread);
    /// - the errors of [`Device::preload`](crate::Device::preload), if the kernel is not loaded yet, and
    ///   [`Driver`](crate::Error::Driver), if the driver refuses the launch.
    ///
    /// Nothing is written when a call fails.
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let Forward {
            op,
            x,
            params,
            mut y,
        } = self;
        let Parts { device, stream, .. } = queue.parts()?;
        let given = [x.as_ref().and_then(Input::given), y.given()];
        let shape = Shape::of(x.as_ref().map_or(y.len(), Input::len), &given);
        let x_rows = rows(&x, "x", device, shape)?;
        let y_rows = y.check_rows(if x.is_some() { "y" } else { "x" }, device, shape)?;
        params.check(op.signature(), device)?;
        let mut addresses = Addresses::on(stream);
        let params = params.resolve(&mut addresses);
        let y = addresses.output_rows(&mut y, y_rows);
        let call = raw::Forward {
            common: common::<T, P>(shape, &params),
            x: x.as_ref()
                .zip(x_rows)
                .map_or(y, |(x, rows)| addresses.input_rows(x, rows)),
            y,
        };
        // SAFETY: all buffers are borrowed here, y mutably, hold what the shape says as checked above,
        // and are of the device's context, as is the stream; cudarc orders their later use and freeing
        // after the launch.
        unsafe { raw::forward(device, stream.cu_stream(), op, &call) }
    }

    /// Returns the bytes of workspace that the launch needs: 0.
    ///
    /// # Errors
    /// None. It is a `Result` so that a later option can add one.
    pub fn workspace_bytes(&self) -> Result<u64> {
        Ok(0)
    }
}

/// Returns a call that computes dx = dy·f′(x) and, if asked, the gradient of each parameter, Σ dy·∂f/∂p. x, dy and dx have
/// the same shape and element type.
pub fn backward<'a, A: Activation + ?Sized, T: Element, P: ParamOf<T>>(
    op: &'a A,
    x: impl Into<Input<'a, T>>,
    dy: impl Into<Input<'a, T>>,
    params: Params<'a, A, P>,
    dx: impl Into<Output<'a, T>>,
) -> Backward<'a, A, T, P> {
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
pub fn backward_in_place<'a, A: Activation + ?Sized, T: Element, P: ParamOf<T>>(
    op: &'a A,
    x: impl Into<Input<'a, T>>,
    dy: impl Into<Output<'a, T>>,
    params: Params<'a, A, P>,
) -> Backward<'a, A, T, P> {
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
#[must_use = "nothing is launched until `launch`"]
pub struct Backward<'a, A: ?Sized, T, P> {
    op: &'a A,
    x: Input<'a, T>,
    /// `None` if dy is in the buffer of dx.
    dy: Option<Input<'a, T>>,
    params: Params<'a, A, P>,
    dx: Output<'a, T>,
    optional: OptionalOutputs<'a, A, T>,
}

/// The optional outputs of a backward.
struct OptionalOutputs<'a, A: ?Sized, T> {
    y: Option<Output<'a, T>>,
    gradients: Option<Gradients<'a, A>>,
    accumulate: bool,
}

impl<A: ?Sized, T> Default for OptionalOutputs<'_, A, T> {
    fn default() -> Self {
        OptionalOutputs {
            y: None,
            gradients: None,
            accumulate: false,
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

        /// Sets the outputs for the parameter gradients, which are overwritten.
        pub fn gradients(mut self, gradients: Gradients<'a, A>) -> Self {
            self.optional.gradients = Some(gradients);
            self.optional.accumulate = false;
            self
        }

        /// Sets the outputs for the parameter gradients, which are added to their contents (gradient accumulation).
        pub fn accumulate(mut self, gradients: Gradients<'a, A>) -> Self {
            self.optional.gradients = Some(gradients);
            self.optional.accumulate = true;
            self
        }

        /// Returns the bytes of workspace that the launch needs: 0 without parameter gradients.
        ///
        /// # Errors
        /// [`TooLarge`](crate::Error::TooLarge).
        pub fn workspace_bytes(&self) -> Result<u64> {
            if self.optional.gradients.is_none() {
                return Ok(0);
            }
            let Shape { rows, cols } = self.shape();
            raw::workspace_bytes(self.op, T::DTYPE, rows as u64, cols as u64)
        }
    };
}

/// Launches `$call` with the optional outputs of a backward.
macro_rules! launch_with_optional {
    ($optional:ident, $params:ident, $addresses:ident, $workspace:ident, $y_rows:ident, |$y:ident, $dparams:ident| $call:expr) => {{
        let accumulate = $optional.accumulate;
        let $y =
            ($optional.y.as_mut().zip($y_rows)).map(|(y, rows)| $addresses.output_rows(y, rows));
        let out = ($optional.gradients.as_mut()).map(|out| out.resolve(&mut $addresses));
        let (workspace, workspace_bytes) = $addresses.workspace($workspace);
        let $dparams = out.as_ref().map(|out| raw::Dparams {
            out,
            accumulate,
            workspace,
            workspace_bytes,
        });
        $call
    }};
}

impl<'a, A: Activation + ?Sized, T: Element, P: ParamOf<T>> Backward<'a, A, T, P> {
    optional_setters!();

    fn shape(&self) -> Shape {
        Shape::of(
            self.x.len(),
            &[
                self.x.given(),
                self.dy.as_ref().and_then(Input::given),
                self.dx.given(),
                self.optional.y.as_ref().and_then(Output::given),
            ],
        )
    }

    /// Launches the call on the stream of the queue: one kernel for dx and partial sums, and, for the parameter gradients, a
    /// small second kernel that adds the partial sums.
    ///
    /// # Errors
    /// As [`Forward::launch`], and [`Workspace`](crate::Error::Workspace) if the workspace of the queue is too small.
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let shape = self.shape();
        let Backward {
            op,
            x,
            dy,
            params,
            mut dx,
            mut optional,
        } = self;
        let Parts {
            device,
            stream,
            workspace,
        } = queue.parts()?;
        let x_rows = x.check_rows("x", device, shape)?;
        let dy_rows = rows(&dy, "dy", device, shape)?;
        let dx_rows = dx.check_rows(if dy.is_some() { "dx" } else { "dy" }, device, shape)?;
        params.check(op.signature(), device)?;
        let y_rows = check_optional(op.signature(), &optional, params.len(), device, shape)?;
        let mut addresses = Addresses::on(stream);
        let params = params.resolve(&mut addresses);
        let dx = addresses.output_rows(&mut dx, dx_rows);
        launch_with_optional!(
            optional,
            params,
            addresses,
            workspace,
            y_rows,
            |y, dparams| {
                let call = raw::Backward {
                    common: common::<T, P>(shape, &params),
                    x: addresses.input_rows(&x, x_rows),
                    dy: (dy.as_ref().zip(dy_rows))
                        .map_or(dx, |(dy, rows)| addresses.input_rows(dy, rows)),
                    dx,
                    y,
                    dparams,
                };
                // SAFETY: as in `Forward::launch`; the workspace is the queue's, used by launches on its stream alone.
                unsafe { raw::backward(device, stream.cu_stream(), op, &call) }
            }
        )
    }
}

/// Returns a call that computes y = g(x)·v of a gate x and a value v, where g is G for [`Order::First`] and f for
/// [`Order::Second`]. x, v and y have the same shape and element type.
pub fn gated_forward<'a, A: Gated + ?Sized, T: Element, P: ParamOf<T>>(
    op: &'a A,
    order: Order,
    xv: impl Into<Pair<'a, T>>,
    params: Params<'a, A, P>,
    y: impl Into<Output<'a, T>>,
) -> GatedForward<'a, A, T, P> {
    GatedForward {
        op,
        order,
        xv: xv.into(),
        params,
        y: y.into(),
    }
}

/// A call of [`gated_forward`].
#[must_use = "nothing is launched until `launch`"]
pub struct GatedForward<'a, A: ?Sized, T, P> {
    op: &'a A,
    order: Order,
    xv: Pair<'a, T>,
    params: Params<'a, A, P>,
    y: Output<'a, T>,
}

impl<A: Gated + ?Sized, T: Element, P: ParamOf<T>> GatedForward<'_, A, T, P> {
    /// Launches the call on the stream of the queue.
    ///
    /// # Errors
    /// As [`Forward::launch`], and [`Block`](crate::Error::Block) if gate and value cannot alternate in blocks
    /// of this length.
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let GatedForward {
            op,
            order,
            xv,
            params,
            mut y,
        } = self;
        let Parts { device, stream, .. } = queue.parts()?;
        let shape = Shape::of(xv.len(), &[xv.given(), y.given()]);
        let xv_rows = xv.check(["x", "v"], device, shape)?;
        let y_rows = y.check_rows("y", device, shape)?;
        params.check(op.signature(), device)?;
        let mut addresses = Addresses::on(stream);
        let params = params.resolve(&mut addresses);
        let call = raw::GatedForward {
            common: common::<T, P>(shape, &params),
            order,
            xv: xv.resolve(&mut addresses, xv_rows),
            y: addresses.output_rows(&mut y, y_rows),
        };
        // SAFETY: as in `Forward::launch`.
        unsafe { raw::gated_forward(device, stream.cu_stream(), op, &call) }
    }

    /// Returns the bytes of workspace that the launch needs: 0.
    ///
    /// # Errors
    /// None. It is a `Result` so that a later option can add one.
    pub fn workspace_bytes(&self) -> Result<u64> {
        Ok(0)
    }
}

/// Returns a call that computes dx = dy·v·g′(x), dv = dy·g(x) and, if asked, the gradient of each parameter,
/// Σ dy·v·∂g/∂p. All tensors have the same shape and element type.
pub fn gated_backward<'a, A: Gated + ?Sized, T: Element, P: ParamOf<T>>(
    op: &'a A,
    order: Order,
    xv: impl Into<Pair<'a, T>>,
    dy: impl Into<Input<'a, T>>,
    params: Params<'a, A, P>,
    dxv: impl Into<PairMut<'a, T>>,
) -> GatedBackward<'a, A, T, P> {
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
pub fn gated_backward_in_place<'a, A: Gated + ?Sized, T: Element, P: ParamOf<T>>(
    op: &'a A,
    order: Order,
    xv: impl Into<PairMut<'a, T>>,
    dy: impl Into<Input<'a, T>>,
    params: Params<'a, A, P>,
) -> GatedBackward<'a, A, T, P> {
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
#[must_use = "nothing is launched until `launch`"]
pub struct GatedBackward<'a, A: ?Sized, T, P> {
    op: &'a A,
    order: Order,
    /// `None` if x and v are in the buffers of dx and dv.
    xv: Option<Pair<'a, T>>,
    dy: Input<'a, T>,
    params: Params<'a, A, P>,
    dxv: PairMut<'a, T>,
    optional: OptionalOutputs<'a, A, T>,
}

impl<'a, A: Gated + ?Sized, T: Element, P: ParamOf<T>> GatedBackward<'a, A, T, P> {
    optional_setters!();

    fn shape(&self) -> Shape {
        let xv = self.xv.as_ref();
        Shape::of(
            xv.map_or(self.dxv.len(), Pair::len),
            &[
                xv.and_then(Pair::given),
                self.dxv.given(),
                self.dy.given(),
                self.optional.y.as_ref().and_then(Output::given),
            ],
        )
    }

    /// Launches the call on the stream of the queue: one kernel for dx, dv and partial sums, and, for the parameter
    /// gradients, a small second kernel that adds the partial sums.
    ///
    /// # Errors
    /// As [`Backward::launch`], and [`Block`](crate::Error::Block) if gate and value cannot alternate in blocks
    /// of this length.
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let shape = self.shape();
        let GatedBackward {
            op,
            order,
            xv,
            dy,
            params,
            mut dxv,
            mut optional,
        } = self;
        let Parts {
            device,
            stream,
            workspace,
        } = queue.parts()?;
        let check = |xv: &Pair<'_, T>| xv.check(["x", "v"], device, shape);
        let xv_rows = xv.as_ref().map(check).transpose()?;
        let dy_rows = dy.check_rows("dy", device, shape)?;
        let names = if xv.is_some() {
            ["dx", "dv"]
        } else {
            ["x", "v"]
        };
        let dxv_rows = dxv.check(names, device, shape)?;
        params.check(op.signature(), device)?;
        let y_rows = check_optional(op.signature(), &optional, params.len(), device, shape)?;
        let mut addresses = Addresses::on(stream);
        let params = params.resolve(&mut addresses);
        let dxv = dxv.resolve(&mut addresses, dxv_rows);
        let xv = match (&xv, xv_rows) {
            (Some(xv), Some(rows)) => xv.resolve(&mut addresses, rows),
            _ => dxv,
        };
        launch_with_optional!(
            optional,
            params,
            addresses,
            workspace,
            y_rows,
            |y, dparams| {
                let call = raw::GatedBackward {
                    common: common::<T, P>(shape, &params),
                    order,
                    xv,
                    dy: addresses.input_rows(&dy, dy_rows),
                    dxv,
                    y,
                    dparams,
                };
                // SAFETY: as in `Backward::launch`.
                unsafe { raw::gated_backward(device, stream.cu_stream(), op, &call) }
            }
        )
    }
}

/// Checks a tensor that may be absent, and returns its rows.
fn rows<T>(
    tensor: &Option<Input<'_, T>>,
    what: &'static str,
    device: &Device,
    shape: Shape,
) -> Result<Option<Rows>> {
    let check = |tensor: &Input<'_, T>| tensor.check_rows(what, device, shape);
    tensor.as_ref().map(check).transpose()
}

/// Checks the optional outputs of a backward, and returns the rows of y.
fn check_optional<A: ?Sized, T>(
    signature: &Signature,
    optional: &OptionalOutputs<'_, A, T>,
    params: usize,
    device: &Device,
    shape: Shape,
) -> Result<Option<Rows>> {
    if let Some(gradients) = &optional.gradients {
        gradients.check(signature, params, device)?;
    }
    let check = |y: &Output<'_, T>| y.check_rows("y", device, shape);
    optional.y.as_ref().map(check).transpose()
}

fn common<'a, T: Element, P: Element>(
    shape: Shape,
    params: &'a [raw::CUdeviceptr],
) -> raw::Common<'a> {
    raw::Common {
        dtype: T::DTYPE,
        rows: shape.rows as u64,
        cols: shape.cols as u64,
        params,
        param_dtype: P::DTYPE,
        blocks: raw::Blocks::All,
    }
}
