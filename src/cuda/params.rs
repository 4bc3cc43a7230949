//! The trainable scalars of a call, and their gradients.

use std::marker::PhantomData;
use std::sync::Arc;

use arrayvec::ArrayVec;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};

use super::device::Device;
use super::tensor::Addresses;
use crate::activation::{MAX_PARAMS, Named, Signature, for_each_activation};
use crate::error::{Result, check_length};

/// The trainable scalars of an `A` on the device, one element each, of type `P`. By name, as
/// [`Xielu::params`](crate::Xielu::params) takes them, or as a list in the order of [`Signature::params`].
///
/// Their type is f32, or that of the elements:
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
/// A third type does not compile:
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

/// Where the gradients of the trainable scalars of an `A` go, one f32 each. By name, as
/// [`Xielu::gradients`](crate::Xielu::gradients) takes them, or as a list in the order of [`Signature::gradients`].
pub struct Gradients<'a, A: ?Sized> {
    scalars: Scalars<&'a mut dyn DevicePtrMut<f32>>,
    op: PhantomData<fn(&A)>,
}

/// Scalars, each at the place that it has among those of the op. There is one place more than any op needs, so that a
/// list that is too long is noticed.
#[derive(Clone, Copy)]
struct Scalars<S>([Option<S>; MAX_PARAMS + 1]);

impl<S> Scalars<S> {
    fn list(scalars: impl IntoIterator<Item = S>) -> Self {
        let mut scalars = scalars.into_iter().fuse();
        Scalars(std::array::from_fn(|_| scalars.next()))
    }

    /// Sets the one of this name.
    fn set(&mut self, names: &[&str], name: &str, scalar: S) {
        let place = names.iter().position(|&of_place| of_place == name);
        if let Some(place) = place.and_then(|place| self.0.get_mut(place)) {
            *place = Some(scalar);
        }
    }

    /// Places up to the last that is taken.
    fn len(&self) -> usize {
        let last = self.0.iter().rposition(Option::is_some);
        last.map_or(0, |last| last + 1)
    }

    /// Fails unless every place up to the last that is taken has one element of the device's context.
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
    /// From a list. That there are as many as the op needs is checked by the call, which also refuses a list that is
    /// too long; of an endless one no more is taken than that needs.
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
    /// From a list. That there are as many as the call has parameters is checked by the call; those of optional
    /// parameters may be left out.
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
            /// Its trainable scalars on a device, one element each.
            pub fn params<'a, P>($($param: &'a impl DevicePtr<P>),*) -> Params<'a, Self, P> {
                let scalars: [&dyn DevicePtr<P>; _] = [$($param),*];
                Params { scalars: Scalars::list(scalars), op: PhantomData }
            }

            /// Where the gradients of its trainable scalars go, one f32 each.
            pub fn gradients<'a>($($gradient: &'a mut impl DevicePtrMut<f32>),*) -> Gradients<'a, Self> {
                let scalars: [&mut dyn DevicePtrMut<f32>; _] = [$($gradient),*];
                Gradients { scalars: Scalars::list(scalars), op: PhantomData }
            }
        }

        $(
            impl<'a, P> Params<'a, crate::$Op, P> {
                /// Gives a parameter that may be left out, and is then an option of the op.
                #[must_use]
                pub fn $optional(mut self, $optional: &'a impl DevicePtr<P>) -> Self {
                    let names = <crate::$Op as Named>::SIGNATURE.params;
                    self.scalars.set(names, stringify!($optional), $optional);
                    self
                }
            }

            impl<'a> Gradients<'a, crate::$Op> {
                /// Asks for the gradient of a parameter that may be left out.
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
