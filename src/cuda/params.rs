//! The trainable scalars of a call, and their gradients.

use std::marker::PhantomData;

use arrayvec::ArrayVec;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{DevicePtr, DevicePtrMut};

use super::device::Device;
use super::tensor::Addresses;
use crate::activation::{MAX_PARAMS, Signature, for_each_activation};
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
    /// One more than any op has, so that a list that is too long is noticed.
    list: ArrayVec<&'a dyn DevicePtr<P>, { MAX_PARAMS + 1 }>,
    op: PhantomData<fn(&A)>,
}

/// Where the gradients of the trainable scalars of an `A` go, one f32 each. By name, as
/// [`Xielu::gradients`](crate::Xielu::gradients) takes them, or as a list in the order of [`Signature::gradients`].
pub struct Gradients<'a, A: ?Sized> {
    list: ArrayVec<&'a mut dyn DevicePtrMut<f32>, { MAX_PARAMS + 1 }>,
    op: PhantomData<fn(&A)>,
}

impl<A: ?Sized, P> Clone for Params<'_, A, P> {
    fn clone(&self) -> Self {
        Params {
            list: self.list.clone(),
            op: PhantomData,
        }
    }
}

impl<'a, A: ?Sized, P> Params<'a, A, P> {
    /// From a list. That there are as many as the op needs is checked by the call.
    pub fn list<B: DevicePtr<P> + 'a>(scalars: impl IntoIterator<Item = &'a B>) -> Self {
        let scalars = scalars
            .into_iter()
            .map(|scalar| scalar as &dyn DevicePtr<P>);
        Params {
            list: scalars.take(MAX_PARAMS + 1).collect(),
            op: PhantomData,
        }
    }

    pub(super) fn check(&self, signature: &Signature, device: &Device) -> Result<()> {
        check_length(
            "params",
            signature.nearest_count(self.list.len()),
            self.list.len(),
        )?;
        for (&name, &param) in signature.params.iter().zip(&self.list) {
            device.check_buffer(name, param.stream())?;
            check_length(name, 1, param.len())?;
        }
        Ok(())
    }

    pub(super) fn resolve<'b>(
        &'b self,
        addresses: &mut Addresses<'b>,
    ) -> ArrayVec<CUdeviceptr, MAX_PARAMS> {
        self.list
            .iter()
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
            list: gradients.take(MAX_PARAMS + 1).collect(),
            op: PhantomData,
        }
    }

    pub(super) fn check(
        &self,
        signature: &Signature,
        params: usize,
        device: &Device,
    ) -> Result<()> {
        let least = signature.params.len() - signature.optional;
        let given = self.list.len();
        check_length("dparams", given.clamp(least, params), given)?;
        for (&name, gradient) in signature.gradients.iter().zip(&self.list) {
            device.check_buffer(name, gradient.stream())?;
            check_length(name, 1, gradient.len())?;
        }
        Ok(())
    }

    pub(super) fn resolve<'b>(
        &'b mut self,
        addresses: &mut Addresses<'b>,
    ) -> ArrayVec<CUdeviceptr, MAX_PARAMS> {
        self.list
            .iter_mut()
            .map(|gradient| addresses.write(&mut **gradient))
            .collect()
    }
}

impl<A: ?Sized, P> Params<'_, A, P> {
    pub(super) fn len(&self) -> usize {
        self.list.len()
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
                let mut list = ArrayVec::new();
                $(list.push($param as &dyn DevicePtr<P>);)*
                Params { list, op: PhantomData }
            }

            /// Where the gradients of its trainable scalars go, one f32 each.
            pub fn gradients<'a>($($gradient: &'a mut impl DevicePtrMut<f32>),*) -> Gradients<'a, Self> {
                let mut list = ArrayVec::new();
                $(list.push($gradient as &mut dyn DevicePtrMut<f32>);)*
                Gradients { list, op: PhantomData }
            }
        }

        $(
            impl<'a, P> Params<'a, crate::$Op, P> {
                /// Gives a parameter that may be left out, and is then an option of the op.
                #[must_use]
                pub fn $optional(mut self, $optional: &'a impl DevicePtr<P>) -> Self {
                    self.list.push($optional);
                    self
                }
            }

            impl<'a> Gradients<'a, crate::$Op> {
                /// Asks for the gradient of a parameter that may be left out.
                #[must_use]
                pub fn $of_optional(mut self, $of_optional: &'a mut impl DevicePtrMut<f32>) -> Self {
                    self.list.push($of_optional);
                    self
                }
            }
        )*
    };
}
for_each_activation!(by_name);
