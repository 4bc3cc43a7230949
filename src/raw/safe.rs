//! The safe API's way in: these calls hold the borrows of all buffers over the launch, check what the types
//! do not say, and resolve the buffers only when all is well.

use cudarc::driver::{CudaStream, DevicePtrMut};

use super::{Backward, CUdeviceptr, Common, Dparams, Forward, GatedBackward, GatedForward};
use crate::activation::{self, Activation, Gated, Order, ParamGradients};
use crate::device::Device;
use crate::dtype::Element;
use crate::error::{Result, check_length};
use crate::tensor;

/// Checks each parameter, and calls `f` with their addresses.
fn with_params<A: Activation, P: Element>(
    device: &Device,
    stream: &CudaStream,
    params: &A::Params<'_, P>,
    f: impl FnOnce(&[CUdeviceptr]) -> Result<()>,
) -> Result<()> {
    let params = activation::sealed::Scalars::list(params);
    for (&name, &param) in A::PARAMS.iter().zip(&params) {
        check_scalar(name, device, param.stream(), param.len())?;
    }
    let (pointers, _guards): (Vec<_>, Vec<_>) =
        params.iter().map(|param| param.device_ptr(stream)).unzip();
    f(&pointers)
}

/// Checks the parameter gradients and their workspace, and calls `f` with their addresses.
fn with_dparams<A: Activation>(
    device: &Device,
    stream: &CudaStream,
    gradients: ParamGradients<'_, A>,
    f: impl FnOnce(&Dparams<'_>) -> Result<()>,
) -> Result<()> {
    let ParamGradients {
        mut out,
        accumulate,
        workspace,
    } = gradients;
    let mut out = activation::sealed::ScalarsMut::list_mut(&mut out);
    for (&name, buffer) in A::GRADIENTS.iter().zip(&out) {
        check_scalar(name, device, buffer.stream(), buffer.len())?;
    }
    let workspace_bytes = workspace.bytes();
    let workspace = workspace.buffer_for(stream)?;
    let (pointers, _guards): (Vec<_>, Vec<_>) = out
        .iter_mut()
        .map(|buffer| buffer.device_ptr_mut(stream))
        .unzip();
    let (workspace, _guard) = workspace.device_ptr_mut(stream);
    f(&Dparams {
        out: &pointers,
        accumulate,
        workspace,
        workspace_bytes,
    })
}

fn check_scalar(
    what: &'static str,
    device: &Device,
    stream: &CudaStream,
    len: usize,
) -> Result<()> {
    device.check_buffer(what, stream)?;
    check_length(what, 1, len)
}

fn common<'a, T: Element, P: Element>(
    shape: tensor::Shape,
    params: &'a [CUdeviceptr],
) -> Common<'a> {
    Common {
        dtype: T::DTYPE,
        rows: shape.rows as u64,
        cols: shape.cols as u64,
        params,
        param_dtype: P::DTYPE,
        max_blocks: None,
    }
}

pub(crate) fn forward<A: Activation, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    call: activation::Forward<'_, A, T, P>,
) -> Result<()> {
    let activation::Forward { x, params, mut y } = call;
    device.check_stream(stream)?;
    let shape = tensor::Shape::of(x.len(), &[x.explicit(), y.explicit()]);
    let (x_rows, y_rows) = (x.check("x", device, shape)?, y.check("y", device, shape)?);
    with_params::<A, P>(device, stream, &params, |params| {
        let (x, y) = (x.resolve(stream, x_rows), y.resolve(stream, y_rows));
        let call = Forward {
            common: common::<T, P>(shape, params),
            x: x.matrix,
            y: y.matrix,
        };
        // SAFETY: all buffers are borrowed here, y mutably, hold what the shape says as checked above,
        // and are of the device's context, as is the stream; cudarc orders their later use and freeing
        // after the launch.
        unsafe { super::forward(device, stream.cu_stream(), op, &call) }
    })
}

pub(crate) fn forward_in_place<A: Activation, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    call: activation::ForwardInPlace<'_, A, T, P>,
) -> Result<()> {
    let activation::ForwardInPlace { mut x, params } = call;
    device.check_stream(stream)?;
    let shape = tensor::Shape::of(x.len(), &[x.explicit()]);
    let rows = x.check("x", device, shape)?;
    with_params::<A, P>(device, stream, &params, |params| {
        let x = x.resolve(stream, rows);
        let call = Forward {
            common: common::<T, P>(shape, params),
            x: x.matrix,
            y: x.matrix,
        };
        // SAFETY: as in `forward`.
        unsafe { super::forward(device, stream.cu_stream(), op, &call) }
    })
}

pub(crate) fn backward<A: Activation, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    call: activation::Backward<'_, A, T, P>,
) -> Result<()> {
    let activation::Backward {
        x,
        dy,
        mut dx,
        mut y,
        params,
        dparams,
    } = call;
    device.check_stream(stream)?;
    let of_y = y.as_ref().and_then(|y| y.explicit());
    let shape = tensor::Shape::of(x.len(), &[x.explicit(), dy.explicit(), dx.explicit(), of_y]);
    let (x_rows, dy_rows) = (x.check("x", device, shape)?, dy.check("dy", device, shape)?);
    let dx_rows = dx.check("dx", device, shape)?;
    let y_rows = y
        .as_ref()
        .map(|y| y.check("y", device, shape))
        .transpose()?;
    with_params::<A, P>(device, stream, &params, |params| {
        with_dparams::<A>(device, stream, dparams, |dparams| {
            let (x, dy) = (x.resolve(stream, x_rows), dy.resolve(stream, dy_rows));
            let dx = dx.resolve(stream, dx_rows);
            let y = y
                .as_mut()
                .zip(y_rows)
                .map(|(y, rows)| y.resolve(stream, rows));
            let call = Backward {
                common: common::<T, P>(shape, params),
                x: x.matrix,
                dy: dy.matrix,
                dx: dx.matrix,
                y: y.as_ref().map(|y| y.matrix),
                dparams: *dparams,
            };
            // SAFETY: as in `forward`; the workspace is of this stream.
            unsafe { super::backward(device, stream.cu_stream(), op, &call) }
        })
    })
}

pub(crate) fn backward_in_place<A: Activation, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    call: activation::BackwardInPlace<'_, A, T, P>,
) -> Result<()> {
    let activation::BackwardInPlace {
        x,
        mut dy,
        params,
        dparams,
    } = call;
    device.check_stream(stream)?;
    let shape = tensor::Shape::of(x.len(), &[x.explicit(), dy.explicit()]);
    let (x_rows, dy_rows) = (x.check("x", device, shape)?, dy.check("dy", device, shape)?);
    with_params::<A, P>(device, stream, &params, |params| {
        with_dparams::<A>(device, stream, dparams, |dparams| {
            let (x, dy) = (x.resolve(stream, x_rows), dy.resolve(stream, dy_rows));
            let call = Backward {
                common: common::<T, P>(shape, params),
                x: x.matrix,
                dy: dy.matrix,
                dx: dy.matrix,
                y: None,
                dparams: *dparams,
            };
            // SAFETY: as in `forward`; the workspace is of this stream.
            unsafe { super::backward(device, stream.cu_stream(), op, &call) }
        })
    })
}

pub(crate) fn gated_forward<A: Gated, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    order: Order,
    call: activation::GatedForward<'_, A, T, P>,
) -> Result<()> {
    let activation::GatedForward {
        x,
        v,
        params,
        mut y,
    } = call;
    device.check_stream(stream)?;
    let shape = tensor::Shape::of(x.len(), &[x.explicit(), v.explicit(), y.explicit()]);
    let (x_rows, v_rows) = (x.check("x", device, shape)?, v.check("v", device, shape)?);
    let y_rows = y.check("y", device, shape)?;
    with_params::<A, P>(device, stream, &params, |params| {
        let (x, v) = (x.resolve(stream, x_rows), v.resolve(stream, v_rows));
        let y = y.resolve(stream, y_rows);
        let call = GatedForward {
            common: common::<T, P>(shape, params),
            order,
            x: x.matrix,
            v: v.matrix,
            y: y.matrix,
        };
        // SAFETY: as in `forward`.
        unsafe { super::gated_forward(device, stream.cu_stream(), op, &call) }
    })
}

pub(crate) fn gated_backward<A: Gated, T: Element, P: Element>(
    op: &A,
    device: &Device,
    stream: &CudaStream,
    order: Order,
    call: activation::GatedBackward<'_, A, T, P>,
) -> Result<()> {
    let activation::GatedBackward {
        x,
        v,
        dy,
        mut gradient,
        mut y,
        params,
        dparams,
    } = call;
    device.check_stream(stream)?;
    let of_y = y.as_ref().and_then(|y| y.explicit());
    let shape = tensor::Shape::of(x.len(), &[x.explicit(), v.explicit(), dy.explicit(), of_y]);
    let (x_rows, v_rows) = (x.check("x", device, shape)?, v.check("v", device, shape)?);
    let dy_rows = dy.check("dy", device, shape)?;
    let gradient_rows = gradient.check(device, shape)?;
    let y_rows = y
        .as_ref()
        .map(|y| y.check("y", device, shape))
        .transpose()?;
    with_params::<A, P>(device, stream, &params, |params| {
        with_dparams::<A>(device, stream, dparams, |dparams| {
            let (x, v) = (x.resolve(stream, x_rows), v.resolve(stream, v_rows));
            let dy = dy.resolve(stream, dy_rows);
            let (dx, dv, _guards) = gradient.resolve(stream, &gradient_rows);
            let y = y
                .as_mut()
                .zip(y_rows)
                .map(|(y, rows)| y.resolve(stream, rows));
            let call = GatedBackward {
                common: common::<T, P>(shape, params),
                order,
                x: x.matrix,
                v: v.matrix,
                dy: dy.matrix,
                dx,
                dv,
                y: y.as_ref().map(|y| y.matrix),
                dparams: *dparams,
            };
            // SAFETY: as in `forward`; the workspace is of this stream.
            unsafe { super::gated_backward(device, stream.cu_stream(), op, &call) }
        })
    })
}
