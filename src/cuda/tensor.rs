//! The tensors of a call: device buffers, whole or as rows of a larger matrix.
//!
//! What cudarc's `DevicePtr` and `DevicePtrMut` say of a buffer is believed, as cudarc itself believes it in
//! its own safe calls.

use arrayvec::ArrayVec;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::device::Device;
use crate::blocks::{LogitsMatrix, Matrix};
use crate::error::{Error, Result, check_length};
use crate::shape::{Halves, Rows, Shape};

/// A tensor that a call reads. A buffer (a `CudaSlice`, a `CudaView`, …) converts into the tensor of all its elements.
pub struct Input<'a, T> {
    /// `None`: there are no elements.
    buffer: Option<&'a dyn DevicePtr<T>>,
    /// `None`: all elements, taken in the shape of the call.
    rows: Option<Rows>,
}

/// A tensor that a call writes, or reads and writes in place. What lies between its rows is not touched. A buffer
/// converts into the tensor of all its elements.
pub struct Output<'a, T> {
    buffer: Option<&'a mut dyn DevicePtrMut<T>>,
    rows: Option<Rows>,
}

impl<T> Clone for Input<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Input<'_, T> {}

impl<'a, T, B: DevicePtr<T>> From<&'a B> for Input<'a, T> {
    fn from(buffer: &'a B) -> Self {
        Input {
            buffer: Some(buffer),
            rows: None,
        }
    }
}

impl<'a, T, B: DevicePtrMut<T>> From<&'a mut B> for Output<'a, T> {
    fn from(buffer: &'a mut B) -> Self {
        Output {
            buffer: Some(buffer),
            rows: None,
        }
    }
}

impl<'a, T> Input<'a, T> {
    /// Rows of a buffer.
    pub fn rows(buffer: &'a dyn DevicePtr<T>, rows: Rows) -> Self {
        Input {
            buffer: Some(buffer),
            rows: Some(rows),
        }
    }

    /// A tensor without elements, for which there need be no buffer: CUDA allocates none of 0 bytes.
    pub fn empty() -> Self {
        Input {
            buffer: None,
            rows: None,
        }
    }
}

impl<'a, T> Output<'a, T> {
    /// Rows of a buffer.
    pub fn rows(buffer: &'a mut dyn DevicePtrMut<T>, rows: Rows) -> Self {
        Output {
            buffer: Some(buffer),
            rows: Some(rows),
        }
    }

    /// A tensor without elements, for which there need be no buffer: CUDA allocates none of 0 bytes.
    pub fn empty() -> Self {
        Output {
            buffer: None,
            rows: None,
        }
    }
}

/// What both kinds of tensors are checked for.
macro_rules! checks {
    ($($Tensor:ident),*) => {$(
        impl<T> $Tensor<'_, T> {
            pub(super) fn len(&self) -> usize {
                self.buffer.as_ref().map_or(0, |buffer| buffer.len())
            }

            pub(super) fn given(&self) -> Option<Rows> {
                self.rows
            }

            /// Fails unless the buffer is of the device's context.
            pub(super) fn check_context(&self, what: &'static str, device: &Device) -> Result<()> {
                match &self.buffer {
                    Some(buffer) => device.check_buffer(what, buffer.stream()),
                    None => Ok(()),
                }
            }

            /// Where the rows of a call of this shape lie. The buffer's events are not touched, so that a refused call
            /// leaves no trace.
            pub(super) fn check(&self, what: &'static str, device: &Device, shape: Shape) -> Result<Rows> {
                self.check_context(what, device)?;
                shape.rows_of(what, self.len(), self.rows)
            }

            /// The same of an activation, whose rows have one pitch.
            pub(super) fn check_rows(&self, what: &'static str, device: &Device, shape: Shape) -> Result<Rows> {
                let rows = self.check(what, device, shape)?;
                if rows.groups.is_some() {
                    return Err(Error::Groups { what });
                }
                Ok(rows)
            }

            /// Fails unless there are `len` elements, one after the other.
            pub(super) fn check_line(&self, what: &'static str, device: &Device, len: usize) -> Result<()> {
                self.check_context(what, device)?;
                match self.rows {
                    None => check_length(what, len, self.len()),
                    // Only whole buffers are lines.
                    Some(rows) => Err(Error::Shape {
                        what,
                        expected: [1, len as u64],
                        got: [rows.rows as u64, rows.cols as u64],
                    }),
                }
            }
        }
    )*};
}
checks!(Input, Output);

/// The addresses of the buffers of a call on a stream. What keeps other streams from using them too early is recorded
/// when this is dropped, which must be after the launch.
pub(super) struct Addresses<'a> {
    stream: &'a CudaStream,
    guards: ArrayVec<SyncOnDrop<'a>, MAX_BUFFERS>,
}

/// The most buffers that a call has: those of cross-entropy with its gradient, with Goldfish, and every output.
const MAX_BUFFERS: usize = 24;

impl<'a> Addresses<'a> {
    pub(super) fn on(stream: &'a CudaStream) -> Addresses<'a> {
        Addresses {
            stream,
            guards: ArrayVec::new(),
        }
    }

    /// Of a buffer that is read.
    pub(super) fn read<T>(&mut self, buffer: &'a dyn DevicePtr<T>) -> CUdeviceptr {
        let (address, guard) = buffer.device_ptr(self.stream);
        self.guards.push(guard);
        address
    }

    /// Of a buffer that is written.
    pub(super) fn write<T>(&mut self, buffer: &'a mut dyn DevicePtrMut<T>) -> CUdeviceptr {
        let (address, guard) = buffer.device_ptr_mut(self.stream);
        self.guards.push(guard);
        address
    }

    /// Of the workspace, and its bytes; 0 if there is none.
    pub(super) fn workspace(
        &mut self,
        workspace: Option<&'a mut CudaSlice<u8>>,
    ) -> (CUdeviceptr, u64) {
        let Some(workspace) = workspace else {
            return (0, 0);
        };
        let bytes = workspace.len() as u64;
        (self.write(workspace), bytes)
    }

    /// Of a tensor that is read, whole; 0 if it is empty.
    pub(super) fn input<T>(&mut self, tensor: &'a Input<'_, T>) -> CUdeviceptr {
        tensor.buffer.map_or(0, |buffer| self.read(buffer))
    }

    /// Of a tensor that is written, whole; 0 if it is empty.
    pub(super) fn output<T>(&mut self, tensor: &'a mut Output<'_, T>) -> CUdeviceptr {
        match &mut tensor.buffer {
            Some(buffer) => self.write(&mut **buffer),
            None => 0,
        }
    }

    /// Rows of a tensor that is read.
    pub(super) fn input_rows<T>(&mut self, tensor: &'a Input<'_, T>, rows: Rows) -> Matrix {
        matrix::<T>(self.input(tensor), rows)
    }

    /// Rows of a tensor that is written.
    pub(super) fn output_rows<T>(&mut self, tensor: &'a mut Output<'_, T>, rows: Rows) -> Matrix {
        matrix::<T>(self.output(tensor), rows)
    }
}

impl<'a> Addresses<'a> {
    /// Rows of logits that are read, in groups or not.
    pub(super) fn input_logits<T>(&mut self, tensor: &'a Input<'_, T>, rows: Rows) -> LogitsMatrix {
        logits::<T>(self.input(tensor), rows)
    }

    /// Rows of logits that are written.
    pub(super) fn output_logits<T>(
        &mut self,
        tensor: &'a mut Output<'_, T>,
        rows: Rows,
    ) -> LogitsMatrix {
        logits::<T>(self.output(tensor), rows)
    }
}

fn logits<T>(base: CUdeviceptr, rows: Rows) -> LogitsMatrix {
    let Matrix { ptr, pitch } = matrix::<T>(base, rows);
    LogitsMatrix {
        ptr,
        pitch,
        group_rows: rows.groups.map_or(0, |groups| groups.rows as u64),
        group_pitch: rows.groups.map_or(0, |groups| groups.pitch as u64),
    }
}

fn matrix<T>(base: CUdeviceptr, rows: Rows) -> Matrix {
    // Rows without elements may lie anywhere, also where no address is.
    let offset = match rows.len() {
        Some(0) => 0,
        _ => rows.offset,
    };
    Matrix {
        ptr: base + (offset * size_of::<T>()) as u64,
        pitch: rows.pitch as u64,
    }
}

/// Gate and value of a gated activation, which are read: two tensors, or the halves of one. A tuple converts into a
/// pair.
pub struct Pair<'a, T> {
    pub(super) x: Input<'a, T>,
    pub(super) v: Input<'a, T>,
}

impl<'a, T> Pair<'a, T> {
    /// Gate and value.
    pub fn new(x: impl Into<Input<'a, T>>, v: impl Into<Input<'a, T>>) -> Self {
        let (x, v) = (x.into(), v.into());
        Pair { x, v }
    }

    /// The halves of a `[rows, 2·n]` tensor, without a copy.
    ///
    /// # Errors
    /// [`Error::Halves`] if the buffer is not such a tensor.
    pub fn halves(buffer: &'a dyn DevicePtr<T>, rows: usize, order: Halves) -> Result<Self> {
        let [x, v] = order.of(buffer.len(), rows)?;
        Ok(Pair {
            x: Input::rows(buffer, x),
            v: Input::rows(buffer, v),
        })
    }
}

impl<'a, T, X: Into<Input<'a, T>>, V: Into<Input<'a, T>>> From<(X, V)> for Pair<'a, T> {
    fn from((x, v): (X, V)) -> Self {
        Pair::new(x, v)
    }
}

/// A gate and a value that are written: two tensors, or the halves of one. A tuple converts into a pair.
pub struct PairMut<'a, T>(Place<'a, T>);

enum Place<'a, T> {
    Separate {
        x: Output<'a, T>,
        v: Output<'a, T>,
    },
    Halves {
        buffer: Output<'a, T>,
        halves: [Rows; 2],
    },
}

impl<'a, T> PairMut<'a, T> {
    /// Gate and value.
    pub fn new(x: impl Into<Output<'a, T>>, v: impl Into<Output<'a, T>>) -> Self {
        let (x, v) = (x.into(), v.into());
        PairMut(Place::Separate { x, v })
    }

    /// The halves of a `[rows, 2·n]` tensor.
    ///
    /// # Errors
    /// [`Error::Halves`] if the buffer is not such a tensor.
    pub fn halves(buffer: &'a mut dyn DevicePtrMut<T>, rows: usize, order: Halves) -> Result<Self> {
        let halves = order.of(buffer.len(), rows)?;
        let buffer = Output {
            buffer: Some(buffer),
            rows: None,
        };
        Ok(PairMut(Place::Halves { buffer, halves }))
    }

    /// Elements of the gate, if it is a whole buffer.
    pub(super) fn len(&self) -> usize {
        match &self.0 {
            Place::Separate { x, .. } => x.len(),
            Place::Halves { halves, .. } => halves[0].len().unwrap_or(usize::MAX),
        }
    }

    pub(super) fn given(&self) -> Option<Rows> {
        match &self.0 {
            Place::Separate { x, v } => x.given().or(v.given()),
            Place::Halves { halves, .. } => Some(halves[0]),
        }
    }

    /// Where the rows of both lie, which the errors call by these names.
    pub(super) fn check(
        &self,
        names: [&'static str; 2],
        device: &Device,
        shape: Shape,
    ) -> Result<[Rows; 2]> {
        match &self.0 {
            Place::Separate { x, v } => Ok([
                x.check_rows(names[0], device, shape)?,
                v.check_rows(names[1], device, shape)?,
            ]),
            Place::Halves { buffer, halves } => {
                buffer.check_context(names[0], device)?;
                for (name, half) in names.into_iter().zip(halves) {
                    shape.rows_of(name, buffer.len(), Some(*half))?;
                }
                Ok(*halves)
            }
        }
    }

    /// Gate and value.
    pub(super) fn resolve<'b>(
        &'b mut self,
        addresses: &mut Addresses<'b>,
        rows: [Rows; 2],
    ) -> [Matrix; 2] {
        match &mut self.0 {
            Place::Separate { x, v } => [
                addresses.output_rows(x, rows[0]),
                addresses.output_rows(v, rows[1]),
            ],
            Place::Halves { buffer, .. } => {
                let base = addresses.output(buffer);
                rows.map(|rows| matrix::<T>(base, rows))
            }
        }
    }
}

impl<'a, T, X: Into<Output<'a, T>>, V: Into<Output<'a, T>>> From<(X, V)> for PairMut<'a, T> {
    fn from((x, v): (X, V)) -> Self {
        PairMut::new(x, v)
    }
}
