//! Replaces `cuda.rs` without the feature `cuda`: every op on a CUDA tensor is an error.

use candle_core::{CudaStorage, Result, Shape, bail};

use crate::activation::{Backward, Call, Operand, Written};
use crate::cross_entropy::{Forward, Gradient, Results};

fn refused<T>() -> Result<T> {
    bail!("the tensor is on CUDA, but xact-candle was built without its feature `cuda`; enable it")
}

pub(crate) fn forward(
    _: &Call,
    _: &[Operand<'_, CudaStorage>],
    _: Operand<'_, CudaStorage>,
) -> Result<(CudaStorage, Shape)> {
    refused()
}

pub(crate) fn backward(
    _: &Backward<'_>,
    _: &[Operand<'_, CudaStorage>],
    _: Operand<'_, CudaStorage>,
) -> Result<Written<CudaStorage>> {
    refused()
}

pub(crate) fn cross_entropy(
    _: &Forward,
    _: Operand<'_, CudaStorage>,
) -> Result<Results<CudaStorage>> {
    refused()
}

pub(crate) fn cross_entropy_gradient(
    _: &Gradient<'_>,
    _: Operand<'_, CudaStorage>,
) -> Result<CudaStorage> {
    refused()
}
