//! Calls of activations on device buffers: they hold the borrows of all buffers over the launch, check what the types
//! do not say, and resolve the buffers only when all is well.

#![allow(unsafe_code)] // the safe calls of `raw`: what they vouch for stands at each

use super::device::Device;
use super::params::{Gradients, Params};
use super::queue::{Parts, Queue};
use super::raw;
use super::tensor::{Addresses, Input, Output, Pair, PairMut};
use crate::activation::{Activation, Gated, Order, Signature};
use crate::dtype::{Element, ParamOf};
use crate::error::Result;
use crate::shape::{Rows, Shape};

/// y = f(x), of any shape: [`launch`](Forward::launch) launches it.
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

/// x = f(x), in place.
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
    /// `None`: it is in y.
    x: Option<Input<'a, T>>,
    params: Params<'a, A, P>,
    y: Output<'a, T>,
}

impl<A: Activation + ?Sized, T: Element, P: ParamOf<T>> Forward<'_, A, T, P> {
    /// Launches the call on the queue.
    ///
    /// # Errors
    /// [`Length`](crate::Error::Length) (a tensor is not as long as x or does not fit into its buffer, or
    /// a parameter is not one element, or there are more or fewer than the op has), [`Shape`](crate::Error::Shape),
    /// [`Pitch`](crate::Error::Pitch), [`Groups`](crate::Error::Groups),
    /// [`WrongContext`](crate::Error::WrongContext), [`WrongThread`](crate::Error::WrongThread),
    /// [`Overlap`](crate::Error::Overlap), or what loading and launching say. Nothing is written then.
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

    /// Bytes of workspace that the launch needs: none.
    ///
    /// # Errors
    /// None today; it is a `Result` so that an option may bring one.
    pub fn workspace_bytes(&self) -> Result<u64> {
        Ok(0)
    }
}

/// dx = dy·f′(x) and, if it is asked for, the gradient of each parameter, Σ dy·∂f/∂p.
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
        also: Also::default(),
    }
}

/// dy = dy·f′(x), in place, and the gradient of each parameter.
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
        also: Also::default(),
    }
}

/// A call of [`backward`].
#[must_use = "nothing is launched until `launch`"]
pub struct Backward<'a, A: ?Sized, T, P> {
    op: &'a A,
    x: Input<'a, T>,
    /// `None`: it is in dx.
    dy: Option<Input<'a, T>>,
    params: Params<'a, A, P>,
    dx: Output<'a, T>,
    also: Also<'a, A, T>,
}

/// What a backward writes if it is asked to.
struct Also<'a, A: ?Sized, T> {
    y: Option<Output<'a, T>>,
    gradients: Option<Gradients<'a, A>>,
    accumulate: bool,
}

impl<A: ?Sized, T> Default for Also<'_, A, T> {
    fn default() -> Self {
        Also {
            y: None,
            gradients: None,
            accumulate: false,
        }
    }
}

/// The setters of a backward.
macro_rules! also {
    () => {
        /// Computes y again and writes it here, of the shape of x, so that a training stack stores only x.
        pub fn y(mut self, y: impl Into<Output<'a, T>>) -> Self {
            self.also.y = Some(y.into());
            self
        }

        /// Writes the gradients of the parameters.
        pub fn gradients(mut self, gradients: Gradients<'a, A>) -> Self {
            self.also.gradients = Some(gradients);
            self.also.accumulate = false;
            self
        }

        /// Adds the gradients of the parameters to what is in these (gradient accumulation).
        pub fn accumulate(mut self, gradients: Gradients<'a, A>) -> Self {
            self.also.gradients = Some(gradients);
            self.also.accumulate = true;
            self
        }

        /// Bytes of workspace that the launch needs.
        ///
        /// # Errors
        /// [`TooLarge`](crate::Error::TooLarge).
        pub fn workspace_bytes(&self) -> Result<u64> {
            if self.also.gradients.is_none() {
                return Ok(0);
            }
            let Shape { rows, cols } = self.shape();
            raw::workspace_bytes(self.op, T::DTYPE, rows as u64, cols as u64)
        }
    };
}

/// Launches `$call` with what a backward writes if it is asked to.
macro_rules! launch_also {
    ($also:ident, $params:ident, $addresses:ident, $workspace:ident, $y_rows:ident, |$y:ident, $dparams:ident| $call:expr) => {{
        let accumulate = $also.accumulate;
        let $y = ($also.y.as_mut().zip($y_rows)).map(|(y, rows)| $addresses.output_rows(y, rows));
        let out = ($also.gradients.as_mut()).map(|out| out.resolve(&mut $addresses));
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
    also!();

    fn shape(&self) -> Shape {
        Shape::of(
            self.x.len(),
            &[
                self.x.given(),
                self.dy.as_ref().and_then(Input::given),
                self.dx.given(),
                self.also.y.as_ref().and_then(Output::given),
            ],
        )
    }

    /// Launches the call on the queue: one pass for dx and the partial sums, and a small one that adds those up.
    ///
    /// # Errors
    /// As [`Forward::launch`], and [`Workspace`](crate::Error::Workspace).
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let shape = self.shape();
        let Backward {
            op,
            x,
            dy,
            params,
            mut dx,
            mut also,
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
        let y_rows = check_also(op.signature(), &also, params.len(), device, shape)?;
        let mut addresses = Addresses::on(stream);
        let params = params.resolve(&mut addresses);
        let dx = addresses.output_rows(&mut dx, dx_rows);
        launch_also!(also, params, addresses, workspace, y_rows, |y, dparams| {
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
        })
    }
}

/// y = g(x)·v, with g = G or f by `order`, of gate and value.
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
    /// Launches the call on the queue.
    ///
    /// # Errors
    /// As [`Forward::launch`].
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let GatedForward {
            op,
            order,
            xv: Pair { x, v },
            params,
            mut y,
        } = self;
        let Parts { device, stream, .. } = queue.parts()?;
        let shape = Shape::of(x.len(), &[x.given(), v.given(), y.given()]);
        let x_rows = x.check_rows("x", device, shape)?;
        let v_rows = v.check_rows("v", device, shape)?;
        let y_rows = y.check_rows("y", device, shape)?;
        params.check(op.signature(), device)?;
        let mut addresses = Addresses::on(stream);
        let params = params.resolve(&mut addresses);
        let call = raw::GatedForward {
            common: common::<T, P>(shape, &params),
            order,
            x: addresses.input_rows(&x, x_rows),
            v: addresses.input_rows(&v, v_rows),
            y: addresses.output_rows(&mut y, y_rows),
        };
        // SAFETY: as in `Forward::launch`.
        unsafe { raw::gated_forward(device, stream.cu_stream(), op, &call) }
    }

    /// Bytes of workspace that the launch needs: none.
    ///
    /// # Errors
    /// None today; it is a `Result` so that an option may bring one.
    pub fn workspace_bytes(&self) -> Result<u64> {
        Ok(0)
    }
}

/// dx = dy·v·g′(x), dv = dy·g(x) and, if it is asked for, the gradient of each parameter, Σ dy·v·∂g/∂p.
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
        also: Also::default(),
    }
}

/// The same in place: gate and value are overwritten with their gradients.
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
        also: Also::default(),
    }
}

/// A call of [`gated_backward`].
#[must_use = "nothing is launched until `launch`"]
pub struct GatedBackward<'a, A: ?Sized, T, P> {
    op: &'a A,
    order: Order,
    /// `None`: they are in dx and dv.
    xv: Option<Pair<'a, T>>,
    dy: Input<'a, T>,
    params: Params<'a, A, P>,
    dxv: PairMut<'a, T>,
    also: Also<'a, A, T>,
}

impl<'a, A: Gated + ?Sized, T: Element, P: ParamOf<T>> GatedBackward<'a, A, T, P> {
    also!();

    fn shape(&self) -> Shape {
        let xv = self.xv.as_ref();
        Shape::of(
            xv.map_or(self.dxv.len(), |xv| xv.x.len()),
            &[
                xv.and_then(|xv| xv.x.given()),
                xv.and_then(|xv| xv.v.given()),
                self.dxv.given(),
                self.dy.given(),
                self.also.y.as_ref().and_then(Output::given),
            ],
        )
    }

    /// Launches the call on the queue: one pass for dx, dv and the partial sums, and a small one that adds those up.
    ///
    /// # Errors
    /// As [`Backward::launch`].
    pub fn launch(self, queue: &mut Queue) -> Result<()> {
        let shape = self.shape();
        let GatedBackward {
            op,
            order,
            xv,
            dy,
            params,
            mut dxv,
            mut also,
        } = self;
        let Parts {
            device,
            stream,
            workspace,
        } = queue.parts()?;
        let xv_rows = match &xv {
            Some(Pair { x, v }) => Some([
                x.check_rows("x", device, shape)?,
                v.check_rows("v", device, shape)?,
            ]),
            None => None,
        };
        let dy_rows = dy.check_rows("dy", device, shape)?;
        let names = if xv.is_some() {
            ["dx", "dv"]
        } else {
            ["x", "v"]
        };
        let dxv_rows = dxv.check(names, device, shape)?;
        params.check(op.signature(), device)?;
        let y_rows = check_also(op.signature(), &also, params.len(), device, shape)?;
        let mut addresses = Addresses::on(stream);
        let params = params.resolve(&mut addresses);
        let [dx, dv] = dxv.resolve(&mut addresses, dxv_rows);
        let [x, v] = match (&xv, xv_rows) {
            (Some(Pair { x, v }), Some([x_rows, v_rows])) => [
                addresses.input_rows(x, x_rows),
                addresses.input_rows(v, v_rows),
            ],
            _ => [dx, dv],
        };
        launch_also!(also, params, addresses, workspace, y_rows, |y, dparams| {
            let call = raw::GatedBackward {
                common: common::<T, P>(shape, &params),
                order,
                x,
                v,
                dy: addresses.input_rows(&dy, dy_rows),
                dx,
                dv,
                y,
                dparams,
            };
            // SAFETY: as in `Backward::launch`.
            unsafe { raw::gated_backward(device, stream.cu_stream(), op, &call) }
        })
    }
}

/// Where the rows of a tensor that may be absent lie.
fn rows<T>(
    tensor: &Option<Input<'_, T>>,
    what: &'static str,
    device: &Device,
    shape: Shape,
) -> Result<Option<Rows>> {
    let check = |tensor: &Input<'_, T>| tensor.check_rows(what, device, shape);
    tensor.as_ref().map(check).transpose()
}

/// Checks what a backward writes if it is asked to; where the rows of y lie.
fn check_also<A: ?Sized, T>(
    signature: &Signature,
    also: &Also<'_, A, T>,
    params: usize,
    device: &Device,
    shape: Shape,
) -> Result<Option<Rows>> {
    if let Some(gradients) = &also.gradients {
        gradients.check(signature, params, device)?;
    }
    let check = |y: &Output<'_, T>| y.check_rows("y", device, shape);
    also.y.as_ref().map(check).transpose()
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
