//! Activations with trainable scalars.
//!
//! An op is a small `Copy` struct with its options, such as [`Xielu`]; [`Activation`] gives it the
//! calls. Trainable scalars stay on the device and are read through pointers by the kernels.

#[cfg(feature = "cuda")]
use std::sync::Arc;

#[cfg(feature = "cuda")]
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};

#[cfg(feature = "cuda")]
use crate::device::{Device, Workspace};
#[cfg(feature = "cuda")]
use crate::dtype::{Dtype, Element};
#[cfg(feature = "cuda")]
use crate::error::{Error, Result};
#[cfg(feature = "cuda")]
use crate::launch::{Direction, Entry};
#[cfg(feature = "cuda")]
use crate::raw;

/// The most trainable scalars that an activation has.
pub(crate) const MAX_PARAMS: usize = 2;

/// The registry: one word per op, which is its module, its kernel file and the stem of its entries.
macro_rules! activations {
    ($($stem:ident: $op:ident),+ $(,)?) => {
        $(
            pub mod $stem;
            pub use $stem::$op;
            impl sealed::Named for $op {
                const STEM: &'static str = stringify!($stem);
            }
        )+

        /// The names of all activations.
        pub const NAMES: &[&str] = &[$(stringify!($stem)),+];

        /// Calls `visitor` with each activation, in the order of [`NAMES`].
        pub fn for_each(visitor: &mut impl Visitor) {
            $(visitor.visit::<$op>();)+
        }

        /// Every entry of every activation.
        #[cfg(feature = "cuda")]
        pub(crate) fn entries() -> impl Iterator<Item = Entry> {
            NAMES.iter().flat_map(|stem| {
                [Direction::Forward, Direction::Backward, Direction::Dparams]
                    .into_iter()
                    .flat_map(move |direction| {
                        Dtype::ALL.map(|dtype| Entry { stem, direction, dtype })
                    })
            })
        }
    };
}

activations!(xielu: Xielu);

pub use xielu::{Compat, EpsGradient, Parameters};

/// The names that the embedded PTX must hold, for the test that compares them.
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub fn entry_names() -> Vec<String> {
    entries().map(|entry| entry.name()).collect()
}

pub(crate) mod sealed {
    /// What the registry gives an op.
    pub trait Named {
        /// Stem of the op.
        const STEM: &'static str;
    }

    /// How an op hands its options to the kernel.
    #[cfg(feature = "cuda")]
    pub trait Options {
        /// Fills the fields of the parameter block that are the op's own.
        fn set_options(&self, args: &mut crate::launch::ActivationArgs);
    }
    #[cfg(not(feature = "cuda"))]
    pub trait Options {}
    #[cfg(not(feature = "cuda"))]
    impl<T: Named> Options for T {}

    /// A set of device scalars, in the order of `Activation::PARAMS`.
    #[cfg(feature = "cuda")]
    pub trait Scalars<P> {
        fn list(&self) -> Vec<&dyn cudarc::driver::DevicePtr<P>>;
    }
    /// The same for the gradients.
    #[cfg(feature = "cuda")]
    pub trait ScalarsMut {
        fn list_mut(&mut self) -> Vec<&mut dyn cudarc::driver::DevicePtrMut<f32>>;
    }
}

/// Something to do with every activation: see [`for_each`].
pub trait Visitor {
    /// Does it with `A`.
    fn visit<A: Activation>(&mut self);
}

/// Options and parameters with which an activation is worth testing.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample<A> {
    /// What is special about them: `initial`, `trained`, or the cruelty.
    pub name: &'static str,
    /// The options.
    pub op: A,
    /// The parameters, in the order of [`Activation::PARAMS`].
    pub params: Vec<f32>,
}

/// A value and the largest addend of the formula it comes from. Rounding errors are proportional to
/// the addends, so accuracy is measured against `max(|value|, scale)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// The value.
    pub value: f64,
    /// Largest magnitude among the addends.
    pub scale: f64,
}

/// Everything about an activation at one point, in f64.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// f(x).
    pub y: Term,
    /// f′(x).
    pub slope: Term,
    /// ∂f/∂p for each of [`Activation::PARAMS`], before [`Activation::chain`]; unused places are 0.
    pub dparams: [f64; MAX_PARAMS],
}

/// An activation with trainable scalars. Implemented by this crate's ops only.
///
/// Tensors are f32, f16 or bf16 on the device, of any length and alignment; arithmetic is f32, rounded
/// once at the store. Parameters are single elements on the device, f32 or of the type of x; parameter
/// gradients are f32. Under tensor parallelism they are the partial sums of a rank, still to be
/// added over the ranks.
///
/// The same input at the same alignment (modulo 16 bytes) gives the same bits on one device model,
/// whatever the grid, the stream or the load.
pub trait Activation:
    sealed::Named + sealed::Options + Copy + std::fmt::Debug + Send + Sync + 'static
{
    /// The op's name: stem of its files and kernel entries.
    const NAME: &'static str = Self::STEM;
    /// The names of the trainable scalars.
    const PARAMS: &'static [&'static str];
    /// The names of their gradients.
    const GRADIENTS: &'static [&'static str];

    /// The trainable scalars, by name; `P` is f32 or the type of x.
    #[cfg(feature = "cuda")]
    type Params<'a, P: Element>: sealed::Scalars<P>;
    /// Where their gradients go, by name.
    #[cfg(feature = "cuda")]
    type Gradients<'a>: sealed::ScalarsMut;

    /// The options and parameters that this crate's own suites run with: initial values, values of
    /// published checkpoints, adversarial ones.
    fn samples() -> Vec<Sample<Self>>;

    /// The reference: f, f′ and ∂f/∂p at `x`, in f64, for `params` in the order of
    /// [`PARAMS`](Self::PARAMS) and in the form that the op's options name (raw or effective).
    ///
    /// # Panics
    /// If `params` does not have one value for each parameter.
    fn evaluate(&self, params: &[f64], x: f64) -> Evaluation;

    /// The factor from Σ dy·∂f/∂p to the gradient of the parameter as it is stored: softplus′ for raw
    /// parameters, else 1.
    ///
    /// # Panics
    /// If `params` does not have one value for each parameter.
    fn chain(&self, params: &[f64]) -> [f64; MAX_PARAMS];

    /// Relative error in units of 2⁻²³ that a kernel may have made in turning the stored parameters
    /// into those of the formula: 4 ulp of a softplus, or 0.
    fn parameter_ulps(&self) -> f64 {
        0.0
    }

    /// Bytes of [`Workspace`] that a backward over `len` elements of type `dtype` needs.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    #[cfg(feature = "cuda")]
    fn workspace_bytes(dtype: Dtype, len: u64) -> Result<u64> {
        raw::workspace_bytes::<Self>(dtype, 1, len)
    }

    /// The stored parameters in f64 for which the formula's parameters are exactly what a kernel makes of
    /// `params`. It asks the kernel, through `run`, which computes f(x) in f32 for an op, its parameters
    /// and x. The accuracy bounds are for y and dx at those; how well they are computed is another bound.
    #[doc(hidden)]
    fn measured(&self, params: &[f32], run: &mut dyn FnMut(&Self, &[f32], f32) -> f32) -> Vec<f64> {
        let _ = run;
        params.iter().map(|&p| f64::from(p)).collect()
    }

    /// y = f(x).
    ///
    /// # Errors
    /// [`Error::Length`] (y is not as long as x, or a parameter is not one element),
    /// [`Error::ParamDtype`], [`Error::WrongContext`], [`Error::Overlap`], or what loading and
    /// launching say. Nothing is written then.
    #[cfg(feature = "cuda")]
    fn forward<T: Element, P: Element>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: Forward<'_, Self, T, P>,
    ) -> Result<()> {
        let Forward { x, params, y } = call;
        device.check_stream(stream)?;
        let cols = check_input(device, "x", x, None)?;
        check_output(device, "y", y, Some(cols))?;
        let (x, _reads_x) = x.device_ptr(stream);
        let (y, _writes_y) = y.device_ptr_mut(stream);
        launch_forward::<Self, T, P>(self, device, stream, cols, (x, y), &params)
    }

    /// x = f(x), in place.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    #[cfg(feature = "cuda")]
    fn forward_in_place<T: Element, P: Element>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: ForwardInPlace<'_, Self, T, P>,
    ) -> Result<()> {
        let ForwardInPlace { x, params } = call;
        device.check_stream(stream)?;
        let cols = check_output(device, "x", x, None)?;
        let (x, _writes_x) = x.device_ptr_mut(stream);
        launch_forward::<Self, T, P>(self, device, stream, cols, (x, x), &params)
    }

    /// dx = dy · f′(x), and the gradient of each parameter, Σ dy · ∂f/∂p.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::Workspace`], [`Error::WrongStream`].
    #[cfg(feature = "cuda")]
    fn backward<T: Element, P: Element>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: Backward<'_, Self, T, P>,
    ) -> Result<()> {
        let Backward {
            x,
            dy,
            dx,
            params,
            dparams,
        } = call;
        device.check_stream(stream)?;
        let cols = check_input(device, "x", x, None)?;
        check_input(device, "dy", dy, Some(cols))?;
        check_output(device, "dx", dx, Some(cols))?;
        let (x, _reads_x) = x.device_ptr(stream);
        let (dy, _reads_dy) = dy.device_ptr(stream);
        let (dx, _writes_dx) = dx.device_ptr_mut(stream);
        launch_backward::<Self, T, P>(self, device, stream, cols, [x, dy, dx], &params, dparams)
    }

    /// dy = dy · f′(x), in place, and the gradient of each parameter.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    #[cfg(feature = "cuda")]
    fn backward_in_place<T: Element, P: Element>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: BackwardInPlace<'_, Self, T, P>,
    ) -> Result<()> {
        let BackwardInPlace {
            x,
            dy,
            params,
            dparams,
        } = call;
        device.check_stream(stream)?;
        let cols = check_input(device, "x", x, None)?;
        check_output(device, "dy", dy, Some(cols))?;
        let (x, _reads_x) = x.device_ptr(stream);
        let (dy, _writes_dy) = dy.device_ptr_mut(stream);
        launch_backward::<Self, T, P>(self, device, stream, cols, [x, dy, dy], &params, dparams)
    }
}

/// The buffers of [`Activation::forward`].
#[cfg(feature = "cuda")]
pub struct Forward<'a, A: Activation, T: Element, P: Element> {
    /// Input, any length.
    pub x: &'a dyn DevicePtr<T>,
    /// The trainable scalars.
    pub params: A::Params<'a, P>,
    /// Output, as long as x.
    pub y: &'a mut dyn DevicePtrMut<T>,
}

/// The buffers of [`Activation::forward_in_place`].
#[cfg(feature = "cuda")]
pub struct ForwardInPlace<'a, A: Activation, T: Element, P: Element> {
    /// Input and output, any length.
    pub x: &'a mut dyn DevicePtrMut<T>,
    /// The trainable scalars.
    pub params: A::Params<'a, P>,
}

/// The buffers of [`Activation::backward`].
#[cfg(feature = "cuda")]
pub struct Backward<'a, A: Activation, T: Element, P: Element> {
    /// Input of the forward, any length.
    pub x: &'a dyn DevicePtr<T>,
    /// Gradient with respect to y, as long as x.
    pub dy: &'a dyn DevicePtr<T>,
    /// Gradient with respect to x, as long as x, overwritten.
    pub dx: &'a mut dyn DevicePtrMut<T>,
    /// The trainable scalars.
    pub params: A::Params<'a, P>,
    /// Their gradients.
    pub dparams: ParamGradients<'a, A>,
}

/// The buffers of [`Activation::backward_in_place`].
#[cfg(feature = "cuda")]
pub struct BackwardInPlace<'a, A: Activation, T: Element, P: Element> {
    /// Input of the forward, any length.
    pub x: &'a dyn DevicePtr<T>,
    /// Gradient with respect to y, as long as x; overwritten with that with respect to x.
    pub dy: &'a mut dyn DevicePtrMut<T>,
    /// The trainable scalars.
    pub params: A::Params<'a, P>,
    /// Their gradients.
    pub dparams: ParamGradients<'a, A>,
}

/// Where and how the parameter gradients are written.
#[cfg(feature = "cuda")]
pub struct ParamGradients<'a, A: Activation> {
    /// One f32 for each parameter.
    pub out: A::Gradients<'a>,
    /// Add to what is there (gradient accumulation), or overwrite it.
    pub accumulate: bool,
    /// Of this stream, at least [`Activation::workspace_bytes`].
    pub workspace: &'a mut Workspace,
}

/// The length of `buffer`, which must be of the device's context.
#[cfg(feature = "cuda")]
fn check(
    device: &Device,
    what: &'static str,
    stream: &CudaStream,
    len: usize,
    expected: Option<u64>,
) -> Result<u64> {
    device.check_buffer(what, stream)?;
    let got = len as u64;
    match expected {
        Some(expected) if expected != got => Err(Error::Length {
            what,
            expected,
            got,
        }),
        _ => Ok(got),
    }
}

#[cfg(feature = "cuda")]
fn check_input<T>(
    device: &Device,
    what: &'static str,
    buffer: &dyn DevicePtr<T>,
    expected: Option<u64>,
) -> Result<u64> {
    check(device, what, buffer.stream(), buffer.len(), expected)
}

#[cfg(feature = "cuda")]
fn check_output<T>(
    device: &Device,
    what: &'static str,
    buffer: &dyn DevicePtrMut<T>,
    expected: Option<u64>,
) -> Result<u64> {
    check(device, what, buffer.stream(), buffer.len(), expected)
}

/// Checks each scalar, and calls `launch` with their pointers.
#[cfg(feature = "cuda")]
fn with_params<A: Activation, P: Element>(
    device: &Device,
    stream: &CudaStream,
    params: &A::Params<'_, P>,
    launch: impl FnOnce(&[raw::CUdeviceptr]) -> Result<()>,
) -> Result<()> {
    let params = sealed::Scalars::list(params);
    for (&name, &param) in A::PARAMS.iter().zip(&params) {
        check_input(device, name, param, Some(1))?;
    }
    let (pointers, _reads): (Vec<_>, Vec<_>) =
        params.iter().map(|param| param.device_ptr(stream)).unzip();
    launch(&pointers)
}

#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
fn launch_forward<A: Activation, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    cols: u64,
    (x, y): (raw::CUdeviceptr, raw::CUdeviceptr),
    params: &A::Params<'_, P>,
) -> Result<()> {
    with_params::<A, P>(device, stream, params, |params| {
        let call = raw::Forward {
            dtype: T::DTYPE,
            rows: 1,
            cols,
            x: raw::Matrix::contiguous(x, cols),
            y: raw::Matrix::contiguous(y, cols),
            params,
            param_dtype: P::DTYPE,
            max_blocks: None,
        };
        // SAFETY: the callers borrow `cols` elements of T at x, and mutably at y, and each parameter
        // its one element of P, all of the device's context as checked; cudarc orders later use and
        // freeing of these buffers after the launch.
        unsafe { raw::forward(device, stream.cu_stream(), op, &call) }
    })
}

#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
fn launch_backward<A: Activation, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    cols: u64,
    [x, dy, dx]: [raw::CUdeviceptr; 3],
    params: &A::Params<'_, P>,
    mut dparams: ParamGradients<'_, A>,
) -> Result<()> {
    let mut out = sealed::ScalarsMut::list_mut(&mut dparams.out);
    for (&name, buffer) in A::GRADIENTS.iter().zip(&out) {
        check_output(device, name, &**buffer, Some(1))?;
    }
    let accumulate = dparams.accumulate;
    let workspace_bytes = dparams.workspace.bytes();
    let workspace = dparams.workspace.buffer_for(stream)?;
    with_params::<A, P>(device, stream, params, |params| {
        let (dparams, _writes): (Vec<_>, Vec<_>) = out
            .iter_mut()
            .map(|buffer| buffer.device_ptr_mut(stream))
            .unzip();
        let (workspace, _writes_workspace) = workspace.device_ptr_mut(stream);
        let call = raw::Backward {
            dtype: T::DTYPE,
            rows: 1,
            cols,
            x: raw::Matrix::contiguous(x, cols),
            dy: raw::Matrix::contiguous(dy, cols),
            dx: raw::Matrix::contiguous(dx, cols),
            params,
            param_dtype: P::DTYPE,
            dparams: &dparams,
            accumulate,
            workspace,
            workspace_bytes,
            max_blocks: None,
        };
        // SAFETY: as in launch_forward; the workspace is of this stream.
        unsafe { raw::backward(device, stream.cu_stream(), op, &call) }
    })
}
