//! Activations with trainable scalars.
//!
//! An op is a small `Copy` struct with its options, such as [`Xielu`]; [`Activation`] gives it the
//! calls, and [`Gated`] those of its gated forms. Trainable scalars stay on the device and are read
//! through pointers by the kernels.

#[cfg(feature = "cuda")]
use std::sync::Arc;

#[cfg(feature = "cuda")]
use cudarc::driver::CudaStream;

#[cfg(feature = "cuda")]
use crate::device::{Device, Workspace};
#[cfg(feature = "cuda")]
use crate::dtype::{Dtype, Element};
#[cfg(feature = "cuda")]
use crate::error::Result;
#[cfg(feature = "cuda")]
use crate::launch::Entry;
#[cfg(feature = "cuda")]
use crate::raw;
#[cfg(feature = "cuda")]
pub use crate::tensor::{GateOutput, Input, Output, Rows};

/// The most trainable scalars that an activation has.
pub(crate) const MAX_PARAMS: usize = 3;

/// How a gated activation uses its gate: y = g(x)·v.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// g = G, the gate alone, with f(x) = x·G(x).
    First,
    /// g = f.
    Second,
}

impl Order {
    /// Both.
    pub const ALL: [Order; 2] = [Order::First, Order::Second];
}

/// How an activation is used.
#[cfg(feature = "cuda")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Form {
    Plain,
    Gated(Order),
}

#[cfg(feature = "cuda")]
impl Form {
    const PLAIN: &[Form] = &[Form::Plain];
    const ALL: &[Form] = &[
        Form::Plain,
        Form::Gated(Order::First),
        Form::Gated(Order::Second),
    ];

    /// The task of its forward.
    pub(crate) const fn forward(self) -> &'static str {
        match self {
            Form::Plain => "forward",
            Form::Gated(Order::First) => "gated1_forward",
            Form::Gated(Order::Second) => "gated2_forward",
        }
    }

    /// The task of its backward.
    pub(crate) const fn backward(self) -> &'static str {
        match self {
            Form::Plain => "backward",
            Form::Gated(Order::First) => "gated1_backward",
            Form::Gated(Order::Second) => "gated2_backward",
        }
    }
}

/// The task of the second stage of the parameter gradients.
#[cfg(feature = "cuda")]
pub(crate) const DPARAMS: &str = "dparams";

/// The registry: one word per op, which is its module, its kernel file and the stem of its entries.
macro_rules! activations {
    (plain: $($plain:ident: $Plain:ident),*; gated: $($gated:ident: $Gated:ident),*;) => {
        $(activations!(op $plain: $Plain);)*
        $(activations!(op $gated: $Gated);)*

        /// The names of all activations.
        pub const NAMES: &[&str] = &[$(stringify!($plain),)* $(stringify!($gated),)*];

        /// Calls `visitor` with each activation, in the order of [`NAMES`].
        pub fn for_each(visitor: &mut impl Visitor) {
            $(visitor.visit::<$Plain>();)*
            $(
                visitor.visit::<$Gated>();
                visitor.visit_gated::<$Gated>();
            )*
        }

        /// The forms of each.
        #[cfg(feature = "cuda")]
        const FORMS: &[(&str, &[Form])] =
            &[$((stringify!($plain), Form::PLAIN),)* $((stringify!($gated), Form::ALL),)*];
    };
    (op $stem:ident: $Op:ident) => {
        pub mod $stem;
        pub use $stem::$Op;
        impl sealed::Named for $Op {
            const STEM: &'static str = stringify!($stem);
        }
    };
}

activations! {
    plain: xielu: Xielu;
    gated: xatlu: Xatlu, xgelu: Xgelu, xsilu: Xsilu;
}

pub mod expanded;

pub use xielu::{Compat, EpsGradient, Parameters};

/// Every entry of every activation.
#[cfg(feature = "cuda")]
pub(crate) fn entries() -> impl Iterator<Item = Entry> {
    FORMS.iter().flat_map(|&(stem, forms)| {
        let tasks = forms
            .iter()
            .flat_map(|&form| [form.forward(), form.backward()])
            .chain([DPARAMS]);
        tasks.flat_map(move |task| {
            Dtype::ALL.map(|dtype| Entry {
                stem,
                task,
                dtype: Some(dtype),
            })
        })
    })
}

pub(crate) mod sealed {
    use crate::cpu::call::{AnyCall, Gradients};

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

    /// How an op is computed on the CPU.
    pub trait OnCpu {
        /// Runs `call` with f for these parameters.
        fn on_cpu(&self, params: &[f32], call: AnyCall<'_, false>) -> Gradients;
    }
    /// The same for an op that can gate.
    pub trait GatedOnCpu {
        /// Runs `call` with G or f.
        fn gated_on_cpu(
            &self,
            order: super::Order,
            params: &[f32],
            call: AnyCall<'_, true>,
        ) -> Gradients;
    }

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

    /// Does what concerns the gated forms of `A`; by default nothing.
    fn visit_gated<A: Gated>(&mut self) {}
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
    sealed::Named + sealed::Options + sealed::OnCpu + Copy + std::fmt::Debug + Send + Sync + 'static
{
    /// The op's name: stem of its files and kernel entries.
    const NAME: &'static str = Self::STEM;
    /// The names of the trainable scalars.
    const PARAMS: &'static [&'static str];
    /// How many of them, at the end, may be left out: the op's options then hold their values.
    const OPTIONAL: usize = 0;
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
    /// If `params` does not have one value for each parameter that is not optional.
    fn evaluate(&self, params: &[f64], x: f64) -> Evaluation;

    /// The factor from Σ dy·∂f/∂p to the gradient of the parameter as it is stored: softplus′ for raw
    /// parameters, else 1.
    ///
    /// # Panics
    /// If `params` does not have one value for each parameter that is not optional.
    fn chain(&self, params: &[f64]) -> [f64; MAX_PARAMS];

    /// Relative error in units of 2⁻²³ that a kernel may have made in turning the stored parameters
    /// into those of the formula: 4 ulp of a softplus, or 0.
    fn parameter_ulps(&self) -> f64 {
        0.0
    }

    /// The stored parameters in f64 for which the formula's parameters are exactly what a kernel makes of
    /// `params`. It asks the kernel, through `run`, which computes f(x) in f32 for an op, its parameters
    /// and x. The accuracy bounds are for y and dx at those; how well they are computed is another bound.
    #[doc(hidden)]
    fn measured(&self, params: &[f32], run: &mut dyn FnMut(&Self, &[f32], f32) -> f32) -> Vec<f64> {
        let _ = run;
        params.iter().map(|&p| f64::from(p)).collect()
    }

    /// Bytes of [`Workspace`] that a backward over `len` elements of type `dtype` needs, if they are dense;
    /// see [`raw::workspace_bytes`] for rows with gaps.
    ///
    /// # Errors
    /// [`Error::TooLarge`](crate::Error::TooLarge).
    #[cfg(feature = "cuda")]
    fn workspace_bytes(dtype: Dtype, len: u64) -> Result<u64> {
        raw::workspace_bytes::<Self>(dtype, 1, len)
    }

    /// y = f(x).
    ///
    /// # Errors
    /// [`Length`](crate::Error::Length) (a tensor is not as long as x or does not fit into its buffer, or
    /// a parameter is not one element), [`Pitch`](crate::Error::Pitch),
    /// [`ParamDtype`](crate::Error::ParamDtype), [`WrongContext`](crate::Error::WrongContext),
    /// [`Overlap`](crate::Error::Overlap), or what loading and launching say. Nothing is written then.
    #[cfg(feature = "cuda")]
    fn forward<T: Element, P: Element>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: Forward<'_, Self, T, P>,
    ) -> Result<()> {
        raw::safe::forward(self, device, stream, call)
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
        raw::safe::forward_in_place(self, device, stream, call)
    }

    /// dx = dy · f′(x), and the gradient of each parameter, Σ dy · ∂f/∂p.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Workspace`](crate::Error::Workspace),
    /// [`WrongStream`](crate::Error::WrongStream).
    #[cfg(feature = "cuda")]
    fn backward<T: Element, P: Element>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        call: Backward<'_, Self, T, P>,
    ) -> Result<()> {
        raw::safe::backward(self, device, stream, call)
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
        raw::safe::backward_in_place(self, device, stream, call)
    }
}

/// An activation f(x) = x·G(x) that can also gate a second input v, the value: y = G(x)·v (order 1) or
/// y = f(x)·v (order 2). In a `[rows, 2·n]` tensor the gate x is the first half, the value the second.
///
/// G(x), f(x) and dy·v are formed in f32: where |f(x)| exceeds 3.4e38, y is ±inf (NaN for v = 0) even if the
/// product would fit.
pub trait Gated: Activation + sealed::GatedOnCpu {
    /// The reference of the gate: G, G′ and ∂G/∂p at `x`, in f64.
    ///
    /// # Panics
    /// As [`evaluate`](Activation::evaluate).
    fn evaluate_gate(&self, params: &[f64], x: f64) -> Evaluation;

    /// The reference of g: G or f.
    ///
    /// # Panics
    /// As [`evaluate`](Activation::evaluate).
    fn evaluate_order(&self, order: Order, params: &[f64], x: f64) -> Evaluation {
        match order {
            Order::First => self.evaluate_gate(params, x),
            Order::Second => self.evaluate(params, x),
        }
    }

    /// y = g(x)·v.
    ///
    /// # Errors
    /// As [`forward`](Activation::forward).
    #[cfg(feature = "cuda")]
    fn gated_forward<T: Element, P: Element>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        order: Order,
        call: GatedForward<'_, Self, T, P>,
    ) -> Result<()> {
        raw::safe::gated_forward(self, device, stream, order, call)
    }

    /// dx = dy·v·g′(x), dv = dy·g(x), and the gradient of each parameter, Σ dy·v·∂g/∂p.
    ///
    /// # Errors
    /// As [`backward`](Activation::backward), and [`Halves`](crate::Error::Halves).
    #[cfg(feature = "cuda")]
    fn gated_backward<T: Element, P: Element>(
        &self,
        device: &Device,
        stream: &Arc<CudaStream>,
        order: Order,
        call: GatedBackward<'_, Self, T, P>,
    ) -> Result<()> {
        raw::safe::gated_backward(self, device, stream, order, call)
    }
}

/// The tensors of [`Activation::forward`].
#[cfg(feature = "cuda")]
pub struct Forward<'a, A: Activation, T: Element, P: Element> {
    /// Input, of any shape.
    pub x: Input<'a, T>,
    /// The trainable scalars.
    pub params: A::Params<'a, P>,
    /// Output, of the shape of x.
    pub y: Output<'a, T>,
}

/// The tensors of [`Activation::forward_in_place`].
#[cfg(feature = "cuda")]
pub struct ForwardInPlace<'a, A: Activation, T: Element, P: Element> {
    /// Input and output, of any shape.
    pub x: Output<'a, T>,
    /// The trainable scalars.
    pub params: A::Params<'a, P>,
}

/// The tensors of [`Activation::backward`].
#[cfg(feature = "cuda")]
pub struct Backward<'a, A: Activation, T: Element, P: Element> {
    /// Input of the forward, of any shape.
    pub x: Input<'a, T>,
    /// Gradient with respect to y, of the shape of x.
    pub dy: Input<'a, T>,
    /// Gradient with respect to x, of its shape, overwritten.
    pub dx: Output<'a, T>,
    /// If given, y is computed again and written here, so that a training stack stores only x.
    pub y: Option<Output<'a, T>>,
    /// The trainable scalars.
    pub params: A::Params<'a, P>,
    /// Their gradients.
    pub dparams: ParamGradients<'a, A>,
}

/// The tensors of [`Activation::backward_in_place`].
#[cfg(feature = "cuda")]
pub struct BackwardInPlace<'a, A: Activation, T: Element, P: Element> {
    /// Input of the forward, of any shape.
    pub x: Input<'a, T>,
    /// Gradient with respect to y, of the shape of x; overwritten with that with respect to x.
    pub dy: Output<'a, T>,
    /// The trainable scalars.
    pub params: A::Params<'a, P>,
    /// Their gradients.
    pub dparams: ParamGradients<'a, A>,
}

/// The tensors of [`Gated::gated_forward`].
#[cfg(feature = "cuda")]
pub struct GatedForward<'a, A: Gated, T: Element, P: Element> {
    /// Gate, of any shape; see [`Input::halves`].
    pub x: Input<'a, T>,
    /// Value, of the shape of x.
    pub v: Input<'a, T>,
    /// The trainable scalars.
    pub params: A::Params<'a, P>,
    /// Output, of the shape of x.
    pub y: Output<'a, T>,
}

/// The tensors of [`Gated::gated_backward`].
#[cfg(feature = "cuda")]
pub struct GatedBackward<'a, A: Gated, T: Element, P: Element> {
    /// Gate of the forward, of any shape; see [`Input::halves`].
    pub x: Input<'a, T>,
    /// Value of the forward, of the shape of x.
    pub v: Input<'a, T>,
    /// Gradient with respect to y, of the shape of x.
    pub dy: Input<'a, T>,
    /// Gradients with respect to x and v, each of the shape of x, overwritten.
    pub gradient: GateOutput<'a, T>,
    /// If given, y is computed again and written here.
    pub y: Option<Output<'a, T>>,
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
