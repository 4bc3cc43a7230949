//! The trainable scalars of a call and their gradients, in device memory.

use std::marker::PhantomData;
use std::sync::Arc;

use arrayvec::ArrayVec;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};

use super::device::Device;
use super::tensor::Addresses;
use crate::activation::{MAX_PARAMS, Named, Signature, for_each_activation};
use crate::error::{Result, check_length};

/// The trainable scalars of an op `A` in device memory, each a buffer `[1] P`. Give them by name
/// ([`Xielu::params`](crate::Xielu::params)), or as a [`list`](Params::list) in the order of [`Signature::params`].
///
/// Their type P is f32 or the element type of the tensors:
///
/// ```no_run
/// # use xact::{Queue, Xsilu, cuda, cudarc::driver::CudaContext, half::f16};
/// # let stream = CudaContext::new(0)?.new_stream()?;
/// # let mut queue = Queue::new(&stream)?;
/// # let mut x = stream.alloc_zeros::<f16>(3)?;
/// let alpha = stream.alloc_zeros::<f16>(1)?;
/// cuda::forward_in_place(&Xsilu, &mut x, Xsilu::params(&alpha)).launch(&mut queue)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Another type does not compile:
///
/// ```compile_fail,E0277
/// # use xact::{Queue, Xsilu, cuda, cudarc::driver::CudaContext, half::f16};
/// # let stream = CudaContext::new(0)?.new_stream()?;
/// # let mut queue = Queue::new(&stream)?;
/// # let mut x = stream.alloc_zeros::<f32>(3)?;
/// let alpha = stream.alloc_zeros::<f16>(1)?;
/// cuda::forward_in_place(&Xsilu, &mut x, Xsilu::params(&alpha)).launch(&mut queue)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Params<'a, A: ?Sized, P> {
    scalars: Scalars<&'a dyn DevicePtr<P>>,
    op: PhantomData<fn(&A)>,
}

/// The outputs for the gradients of the trainable scalars of an op `A`, each a buffer `[1] f32`. Give them by name
/// ([`Xielu::gradients`](crate::Xielu::gradients)), or as a [`list`](Gradients::list) in the order of
/// [`Signature::gradients`].
pub struct Gradients<'a, A: ?Sized> {
    scalars: Scalars<&'a mut dyn DevicePtrMut<f32>>,
    op: PhantomData<fn(&A)>,
}

/// Scalars in the order of the op's parameters. There is one place more than any op needs, so that a list that is too long
/// is noticed.
#[derive(Clone, Copy)]
struct Scalars<S>([Option<S>; MAX_PARAMS + 1]);

impl<S> Scalars<S> {
    fn list(scalars: impl IntoIterator<Item = S>) -> Self {
        let mut scalars = scalars.into_iter().fuse();
        Scalars(std::array::from_fn(|_| scalars.next()))
    }

    /// Sets the scalar of this name.
    fn set(&mut self, names: &[&str], name: &str, scalar: S) {
        let place = names.iter().position(|&of_place| of_place == name);
        if let Some(place) = place.and_then(|place| self.0.get_mut(place)) {
            *place = Some(scalar);
        }
    }

    /// The number of places up to the last one in use.
    fn len(&self) -> usize {
        let last = self.0.iter().rposition(Option::is_some);
        last.map_or(0, |last| last + 1)
    }

    /// Fails unless every place up to the last one in use has a buffer of one element in the device's context.
    fn check<'b>(
        &'b self,
        names: &[&'static str],
        device: &Device,
        buffer: impl Fn(&'b S) -> (&'b Arc<CudaStream>, usize),
    ) -> Result<()> {
        for (&name, scalar) in names.iter().zip(&self.0).take(self.len()) {
            let (stream, len) = match scalar {
                Some(scalar) => buffer(scalar),
                None => return check_length(name, 1, 0),
            };
            device.check_buffer(name, stream)?;
            check_length(name, 1, len)?;
        }
        Ok(())
    }
}

impl<A: ?Sized, P> Clone for Params<'_, A, P> {
    fn clone(&self) -> Self {
        Params {
            scalars: self.scalars,
            op: PhantomData,
        }
    }
}

impl<'a, A: ?Sized, P> Params<'a, A, P> {
    /// The parameters from a list in the order of [`Signature::params`]. The call checks their number and returns
    /// [`Error::Length`](crate::Error::Length) if it is wrong.
    pub fn list<B: DevicePtr<P> + 'a>(scalars: impl IntoIterator<Item = &'a B>) -> Self {
        let scalars = scalars
            .into_iter()
            .map(|scalar| scalar as &dyn DevicePtr<P>);
        Params {
            scalars: Scalars::list(scalars),
            op: PhantomData,
        }
    }

    pub(super) fn check(&self, signature: &Signature, device: &Device) -> Result<()> {
        signature.check_params(self.len())?;
        (self.scalars).check(signature.params, device, |param| {
            (param.stream(), param.len())
        })
    }

    pub(super) fn resolve<'b>(
        &'b self,
        addresses: &mut Addresses<'b>,
    ) -> ArrayVec<CUdeviceptr, MAX_PARAMS> {
        (self.scalars.0.iter().flatten())
            .map(|&param| addresses.read(param))
            .collect()
    }
}

impl<'a, A: ?Sized> Gradients<'a, A> {
    /// The outputs from a list in the order of [`Signature::gradients`]: one for each parameter of the call, where those of
    /// optional parameters may be left out. The call checks their number and returns
    /// [`Error::Length`](crate::Error::Length) if it is wrong.
    pub fn list<B: DevicePtrMut<f32> + 'a>(gradients: impl IntoIterator<Item = &'a mut B>) -> Self {
        let gradients = gradients
            .into_iter()
            .map(|gradient| gradient as &mut dyn DevicePtrMut<f32>);
        Gradients {
            scalars: Scalars::list(gradients),
            op: PhantomData,
        }
    }

    pub(super) fn check(
        &self,
        signature: &Signature,
        params: usize,
        device: &Device,
    ) -> Result<()> {
        signature.check_gradients(params, self.scalars.len())?;
        (self.scalars).check(signature.gradients, device, |gradient| {
            (gradient.stream(), gradient.len())
        })
    }

    pub(super) fn resolve<'b>(
        &'b mut self,
        addresses: &mut Addresses<'b>,
    ) -> ArrayVec<CUdeviceptr, MAX_PARAMS> {
        (self.scalars.0.iter_mut().flatten())
            .map(|gradient| addresses.write(&mut **gradient))
            .collect()
    }
}

impl<A: ?Sized, P> Params<'_, A, P> {
    pub(super) fn len(&self) -> usize {
        self.scalars.len()
    }
}

macro_rules! by_name {
    (
        plain {$($plain:ident: $Plain:ident $plain_params:tt;)*}
        gated {$($gated:ident: $Gated:ident $gated_params:tt;)*}
    ) => {
        $(by_name!(op $Plain $plain_params);)*
        $(by_name!(op $Gated $gated_params);)*
    };
    (op $Op:ident ($($param:ident $gradient:ident),*; $($optional:ident $of_optional:ident),*)) => {
        impl crate::$Op {
            /// The trainable scalars of a call in device memory, each `[1] P`, where P is f32 or the type of the tensors.
            pub fn params<'a, P>($($param: &'a impl DevicePtr<P>),*) -> Params<'a, Self, P> {
                let scalars: [&dyn DevicePtr<P>; _] = [$($param),*];
                Params { scalars: Scalars::list(scalars), op: PhantomData }
            }

            /// The outputs for the gradients of the trainable scalars, each `[1] f32` in device memory.
            pub fn gradients<'a>($($gradient: &'a mut impl DevicePtrMut<f32>),*) -> Gradients<'a, Self> {
                let scalars: [&mut dyn DevicePtrMut<f32>; _] = [$($gradient),*];
                Gradients { scalars: Scalars::list(scalars), op: PhantomData }
            }
        }

        $(
            impl<'a, P> Params<'a, crate::$Op, P> {
                /// Sets an optional parameter, `[1] P`. Without it, the call uses the option of the op.
                #[must_use]
                pub fn $optional(mut self, $optional: &'a impl DevicePtr<P>) -> Self {
                    let names = <crate::$Op as Named>::SIGNATURE.params;
                    self.scalars.set(names, stringify!($optional), $optional);
                    self
                }
            }

            impl<'a> Gradients<'a, crate::$Op> {
                /// Sets the output for the gradient of an optional parameter, `[1] f32`.
                #[must_use]
                pub fn $of_optional(mut self, $of_optional: &'a mut impl DevicePtrMut<f32>) -> Self {
                    let names = <crate::$Op as Named>::SIGNATURE.gradients;
                    self.scalars.set(names, stringify!($of_optional), $of_optional);
                    self
                }
            }
        )*
    };
}
for_each_activation!(by_name);
