//! Checks of arguments, and the conversion of errors into candle's.

use candle_core::{DType, Error, Result, Tensor};

/// Wraps an error of xact, whose text says what to do, in an error of candle.
pub(crate) fn of_xact(error: xact::Error) -> Error {
    Error::wrap(error)
}

/// Fails unless the dtype of `tensor` is one of `among`.
pub(crate) fn check_dtype(what: &str, tensor: &Tensor, among: &[DType]) -> Result<()> {
    let got = tensor.dtype();
    if among.contains(&got) {
        return Ok(());
    }
    let names: Vec<&str> = among.iter().map(|dtype| dtype.as_str()).collect();
    candle_core::bail!(
        "{what} is {}; it must be {}",
        got.as_str(),
        names.join(" or ")
    )
}

/// Fails unless the shape of `tensor` is `dims`.
pub(crate) fn check_shape(what: &str, tensor: &Tensor, dims: &[usize]) -> Result<()> {
    if tensor.dims() == dims {
        return Ok(());
    }
    candle_core::bail!("{what} is {:?}; it must be {dims:?}", tensor.dims())
}

/// Fails unless both tensors are on the same device.
pub(crate) fn check_device(what: &str, tensor: &Tensor, other: &Tensor) -> Result<()> {
    if tensor.device().same_device(other.device()) {
        return Ok(());
    }
    let [got, needed] = [tensor, other].map(|tensor| tensor.device().location());
    candle_core::bail!("{what} is on {got:?}; it must be on {needed:?}")
}

/// The dtypes that xact computes with.
pub(crate) const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
