//! The tensors of a call: device buffers, whole or as rows of a larger matrix.
//!
//! What cudarc's `DevicePtr` and `DevicePtrMut` say of a buffer is believed, as cudarc itself believes it in
//! its own safe calls.

use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceSlice, SyncOnDrop};

use crate::device::Device;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::launch::Matrix;

/// Where the rows of a tensor lie in a buffer, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The first element of the first row.
    pub offset: usize,
    /// Rows.
    pub rows: usize,
    /// Elements in a row.
    pub cols: usize,
    /// Elements from the start of one row to the start of the next, at least `cols`.
    pub pitch: usize,
}

impl Rows {
    /// The gate and value halves of a `[rows, 2·n]` tensor of `len` elements.
    fn halves(len: usize, rows: usize) -> Result<[Rows; 2]> {
        let width = len.checked_div(rows).unwrap_or(0);
        if width * rows != len || !width.is_multiple_of(2) {
            return Err(Error::Halves {
                len: len as u64,
                rows: rows as u64,
            });
        }
        let half = |offset| Rows {
            offset,
            rows,
            cols: width / 2,
            pitch: width,
        };
        Ok([half(0), half(width / 2)])
    }

    /// Elements that a buffer needs to hold these rows; `None` if they cannot be counted.
    fn end(&self) -> Option<usize> {
        if self.rows == 0 || self.cols == 0 {
            return Some(0);
        }
        (self.rows - 1)
            .checked_mul(self.pitch)?
            .checked_add(self.offset)?
            .checked_add(self.cols)
    }
}

/// A tensor that a call reads. A buffer converts into the tensor of all its elements.
pub struct Input<'a, T> {
    buffer: &'a dyn DevicePtr<T>,
    /// `None`: the whole buffer, taken in the shape of the call.
    rows: Option<Rows>,
}

/// A tensor that a call writes, or reads and writes in place. A buffer converts into the tensor of all
/// its elements.
pub struct Output<'a, T> {
    buffer: &'a mut dyn DevicePtrMut<T>,
    rows: Option<Rows>,
}

impl<'a, T, B: DevicePtr<T>> From<&'a B> for Input<'a, T> {
    fn from(buffer: &'a B) -> Self {
        Input { buffer, rows: None }
    }
}

impl<'a, T, B: DevicePtrMut<T>> From<&'a mut B> for Output<'a, T> {
    fn from(buffer: &'a mut B) -> Self {
        Output { buffer, rows: None }
    }
}

impl<'a, T> Input<'a, T> {
    /// Rows of a buffer.
    pub fn rows(buffer: &'a dyn DevicePtr<T>, rows: Rows) -> Self {
        Input {
            buffer,
            rows: Some(rows),
        }
    }

    /// The gate (first) and value (second) halves of a `[rows, 2·n]` tensor, without a copy.
    ///
    /// # Errors
    /// [`Error::Halves`] if the buffer is not such a tensor.
    pub fn halves(buffer: &'a dyn DevicePtr<T>, rows: usize) -> Result<[Self; 2]> {
        Ok(Rows::halves(buffer.len(), rows)?.map(|half| Input::rows(buffer, half)))
    }
}

impl<'a, T> Output<'a, T> {
    /// Rows of a buffer.
    pub fn rows(buffer: &'a mut dyn DevicePtrMut<T>, rows: Rows) -> Self {
        Output {
            buffer,
            rows: Some(rows),
        }
    }
}

/// Where the gradients of both inputs of a gated activation go.
pub enum GateOutput<'a, T> {
    /// Each into its own tensor.
    Separate {
        /// Gradient with respect to the gate.
        dx: Output<'a, T>,
        /// Gradient with respect to the value.
        dv: Output<'a, T>,
    },
    /// Both into a `[rows, 2·n]` tensor: dx in the first, dv in the second half of each row.
    Halves {
        /// The tensor.
        buffer: &'a mut dyn DevicePtrMut<T>,
        /// Its rows.
        rows: usize,
    },
}

/// The shape of a call: that of the first of its tensors that is given as rows, or else one row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Shape {
    pub(crate) fn of(len: usize, explicit: &[Option<Rows>]) -> Shape {
        explicit
            .iter()
            .flatten()
            .next()
            .map_or(Shape { rows: 1, cols: len }, |rows| Shape {
                rows: rows.rows,
                cols: rows.cols,
            })
    }
}

/// A tensor of a call, checked and resolved to addresses. The buffer stays borrowed by what it was
/// resolved from, and `guard` orders other streams' use of it; both must outlive the launch.
pub(crate) struct Resolved<'a> {
    pub(crate) matrix: Matrix,
    _guard: SyncOnDrop<'a>,
}

/// Checks that the tensor is of the device's context, fits into its buffer and has the shape of the call.
fn check<T: Element>(
    what: &'static str,
    device: &Device,
    buffer: &(impl DeviceSlice<T> + ?Sized),
    rows: Option<Rows>,
    shape: Shape,
) -> Result<Rows> {
    device.check_buffer(what, buffer.stream())?;
    let length = |expected: Option<usize>, got: usize| Error::Length {
        what,
        expected: expected.map_or(u64::MAX, |n| n as u64),
        got: got as u64,
    };
    let count = shape.rows.checked_mul(shape.cols);
    let Some(rows) = rows else {
        if count != Some(buffer.len()) {
            return Err(length(count, buffer.len()));
        }
        return Ok(Rows {
            offset: 0,
            rows: shape.rows,
            cols: shape.cols,
            pitch: shape.cols,
        });
    };
    if (rows.rows, rows.cols) != (shape.rows, shape.cols) {
        return Err(length(count, rows.rows.saturating_mul(rows.cols)));
    }
    if rows.pitch < rows.cols {
        return Err(Error::Pitch {
            what,
            pitch: rows.pitch as u64,
            cols: rows.cols as u64,
        });
    }
    match rows.end() {
        Some(end) if end <= buffer.len() => Ok(rows),
        end => Err(length(end, buffer.len())),
    }
}

fn matrix<T: Element>(base: CUdeviceptr, rows: Rows) -> Matrix {
    Matrix {
        ptr: base + (rows.offset * size_of::<T>()) as u64,
        pitch: rows.pitch as u64,
    }
}

impl<T: Element> Input<'_, T> {
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn explicit(&self) -> Option<Rows> {
        self.rows
    }

    /// Checks without touching the buffer's events, so that a refused call leaves no trace.
    pub(crate) fn check(&self, what: &'static str, device: &Device, shape: Shape) -> Result<Rows> {
        check(what, device, self.buffer, self.rows, shape)
    }

    pub(crate) fn resolve<'b>(&'b self, stream: &'b CudaStream, rows: Rows) -> Resolved<'b> {
        let (base, guard) = self.buffer.device_ptr(stream);
        Resolved {
            matrix: matrix::<T>(base, rows),
            _guard: guard,
        }
    }
}

impl<T: Element> Output<'_, T> {
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn explicit(&self) -> Option<Rows> {
        self.rows
    }

    pub(crate) fn check(&self, what: &'static str, device: &Device, shape: Shape) -> Result<Rows> {
        check(what, device, self.buffer, self.rows, shape)
    }

    pub(crate) fn resolve<'b>(&'b mut self, stream: &'b CudaStream, rows: Rows) -> Resolved<'b> {
        let (base, guard) = self.buffer.device_ptr_mut(stream);
        Resolved {
            matrix: matrix::<T>(base, rows),
            _guard: guard,
        }
    }
}

/// [`GateOutput`], checked.
pub(crate) struct GateRows {
    dx: Rows,
    dv: Rows,
}

impl<T: Element> GateOutput<'_, T> {
    pub(crate) fn check(&self, device: &Device, shape: Shape) -> Result<GateRows> {
        match self {
            GateOutput::Separate { dx, dv } => Ok(GateRows {
                dx: dx.check("dx", device, shape)?,
                dv: dv.check("dv", device, shape)?,
            }),
            GateOutput::Halves { buffer, rows } => {
                let [dx, dv] = Rows::halves(buffer.len(), *rows)?;
                Ok(GateRows {
                    dx: check("dx", device, &**buffer, Some(dx), shape)?,
                    dv: check("dv", device, &**buffer, Some(dv), shape)?,
                })
            }
        }
    }

    /// dx and dv.
    pub(crate) fn resolve<'b>(
        &'b mut self,
        stream: &'b CudaStream,
        rows: &GateRows,
    ) -> (Matrix, Matrix, Vec<SyncOnDrop<'b>>) {
        match self {
            GateOutput::Separate { dx, dv } => {
                let (dx, dv) = (dx.resolve(stream, rows.dx), dv.resolve(stream, rows.dv));
                (dx.matrix, dv.matrix, vec![dx._guard, dv._guard])
            }
            GateOutput::Halves { buffer, .. } => {
                let (base, guard) = buffer.device_ptr_mut(stream);
                (
                    matrix::<T>(base, rows.dx),
                    matrix::<T>(base, rows.dv),
                    vec![guard],
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_what_is_not_two_halves_are_refused() {
        assert!(Rows::halves(12, 2).is_ok_and(|[gate, value]| {
            (gate.offset, value.offset, gate.cols, gate.pitch) == (0, 3, 3, 6)
        }));
        // An odd width, a width that is not whole, rows of nothing.
        for (len, rows) in [(10, 2), (13, 2), (4, 0)] {
            assert!(matches!(Rows::halves(len, rows), Err(Error::Halves { .. })));
        }
        assert!(Rows::halves(0, 0).is_ok() && Rows::halves(0, 3).is_ok());
    }
}
