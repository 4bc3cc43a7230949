//! The tensors of a call: whole device buffers, or rows of a larger matrix.
//!
//! The pointers and lengths that cudarc's `DevicePtr` and `DevicePtrMut` return are trusted, as cudarc does in its own safe
//! calls.

use arrayvec::ArrayVec;
use cudarc::driver::sys::CUdeviceptr;
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::device::Device;
use super::raw;
use crate::blocks::{LogitsMatrix, Matrix};
use crate::error::{Error, Result, check_length};
use crate::shape::{Halves, Interleaving, Rows, Shape};

/// A device tensor of T that a call reads. A reference to a buffer (`CudaSlice`, `CudaView`, …) converts into the tensor of
/// all its elements.
pub struct Input<'a, T> {
    /// `None` if the tensor has no elements.
    buffer: Option<&'a dyn DevicePtr<T>>,
    /// `None` for all elements, in the shape of the call.
    rows: Option<Rows>,
}

/// A device tensor of T that a call writes, or reads and writes in place. Elements between its rows are not touched. A mutable
/// reference to a buffer converts into the tensor of all its elements.
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
    /// A tensor of the given rows of a buffer.
    pub fn rows(buffer: &'a dyn DevicePtr<T>, rows: Rows) -> Self {
        Input {
            buffer: Some(buffer),
            rows: Some(rows),
        }
    }

    /// A tensor without elements. It needs no buffer, because CUDA does not allocate 0 bytes.
    pub fn empty() -> Self {
        Input {
            buffer: None,
            rows: None,
        }
    }
}

impl<'a, T> Output<'a, T> {
    /// A tensor of the given rows of a buffer.
    pub fn rows(buffer: &'a mut dyn DevicePtrMut<T>, rows: Rows) -> Self {
        Output {
            buffer: Some(buffer),
            rows: Some(rows),
        }
    }

    /// A tensor without elements. It needs no buffer, because CUDA does not allocate 0 bytes.
    pub fn empty() -> Self {
        Output {
            buffer: None,
            rows: None,
        }
    }
}

/// The checks of inputs and outputs.
macro_rules! checks {
    ($($Tensor:ident),*) => {$(
        impl<T> $Tensor<'_, T> {
            pub(super) fn len(&self) -> usize {
                self.buffer.as_ref().map_or(0, |buffer| buffer.len())
            }

            pub(super) fn given(&self) -> Option<Rows> {
                self.rows
            }

            /// Fails unless the buffer belongs to the device's context.
            pub(super) fn check_context(&self, what: &'static str, device: &Device) -> Result<()> {
                match &self.buffer {
                    Some(buffer) => device.check_buffer(what, buffer.stream()),
                    None => Ok(()),
                }
            }

            /// Checks the tensor against the shape of the call, and returns its rows. It does not touch the events of the
            /// buffer, so that a refused call has no effect.
            pub(super) fn check(&self, what: &'static str, device: &Device, shape: Shape) -> Result<Rows> {
                self.check_context(what, device)?;
                shape.rows_of(what, self.len(), self.rows)
            }

            /// Like `check`, for an activation, which allows no groups of rows.
            pub(super) fn check_rows(&self, what: &'static str, device: &Device, shape: Shape) -> Result<Rows> {
                let rows = self.check(what, device, shape)?;
                if rows.groups.is_some() {
                    return Err(Error::Groups { what });
                }
                Ok(rows)
            }

            /// Fails unless the tensor is a whole buffer of `len` elements.
            pub(super) fn check_line(&self, what: &'static str, device: &Device, len: usize) -> Result<()> {
                self.check_context(what, device)?;
                match self.rows {
                    None => check_length(what, len, self.len()),
                    // Rows are refused here.
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

/// The device addresses of the buffers of a call on a stream. Dropping it records the events that make other streams wait, so
/// it must be dropped after the launch.
pub(super) struct Addresses<'a> {
    stream: &'a CudaStream,
    guards: ArrayVec<SyncOnDrop<'a>, MAX_BUFFERS>,
}

/// The maximum number of buffers of a call: cross-entropy with its gradient, Goldfish, and every output.
const MAX_BUFFERS: usize = 24;

impl<'a> Addresses<'a> {
    pub(super) fn on(stream: &'a CudaStream) -> Addresses<'a> {
        Addresses {
            stream,
            guards: ArrayVec::new(),
        }
    }

    /// The address of a buffer that is read.
    pub(super) fn read<T>(&mut self, buffer: &'a dyn DevicePtr<T>) -> CUdeviceptr {
        let (address, guard) = buffer.device_ptr(self.stream);
        self.guards.push(guard);
        address
    }

    /// The address of a buffer that is written.
    pub(super) fn write<T>(&mut self, buffer: &'a mut dyn DevicePtrMut<T>) -> CUdeviceptr {
        let (address, guard) = buffer.device_ptr_mut(self.stream);
        self.guards.push(guard);
        address
    }

    /// The address and the bytes of the workspace; 0 if there is none.
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

    /// The address of a whole tensor that is read; 0 if it is empty.
    pub(super) fn input<T>(&mut self, tensor: &'a Input<'_, T>) -> CUdeviceptr {
        tensor.buffer.map_or(0, |buffer| self.read(buffer))
    }

    /// The address of a whole tensor that is written; 0 if it is empty.
    pub(super) fn output<T>(&mut self, tensor: &'a mut Output<'_, T>) -> CUdeviceptr {
        match &mut tensor.buffer {
            Some(buffer) => self.write(&mut **buffer),
            None => 0,
        }
    }

    /// The matrix of a tensor that is read.
    pub(super) fn input_rows<T>(&mut self, tensor: &'a Input<'_, T>, rows: Rows) -> Matrix {
        matrix::<T>(self.input(tensor), rows)
    }

    /// The matrix of a tensor that is written.
    pub(super) fn output_rows<T>(&mut self, tensor: &'a mut Output<'_, T>, rows: Rows) -> Matrix {
        matrix::<T>(self.output(tensor), rows)
    }
}

impl<'a> Addresses<'a> {
    /// The matrix of logits that are read.
    pub(super) fn input_logits<T>(&mut self, tensor: &'a Input<'_, T>, rows: Rows) -> LogitsMatrix {
        logits::<T>(self.input(tensor), rows)
    }

    /// The matrix of logits that are written.
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
    // Rows without elements may have any offset, also beyond the buffer.
    let offset = match rows.len() {
        Some(0) => 0,
        _ => rows.offset,
    };
    Matrix {
        ptr: base + (offset * size_of::<T>()) as u64,
        pitch: rows.pitch as u64,
    }
}

/// The gate x and the value v of a gated activation, which a call reads: two tensors, or one that holds both. A tuple
/// `(x, v)` converts into a pair.
pub struct Pair<'a, T>(Places<Input<'a, T>>);

/// The outputs of the gate and of the value, such as dx and dv: two tensors, or one that holds both. A tuple converts into a
/// pair.
pub struct PairMut<'a, T>(Places<Output<'a, T>>);

/// The tensors of a pair.
enum Places<B> {
    Separate {
        x: B,
        v: B,
    },
    /// The halves of a buffer.
    Halves {
        buffer: B,
        halves: [Rows; 2],
    },
    /// A `[rows, 2·n]` tensor, in whose columns gate and value alternate.
    Interleaved {
        xv: B,
        order: Halves,
        block: usize,
    },
}

/// The constructors and the checks of pairs.
macro_rules! pairs {
    ($Pair:ident of $Tensor:ident: $Buffer:ty, $address:ident, $matrix:ident $(, $mut:tt)?) => {
        impl<'a, T> $Pair<'a, T> {
            /// A pair of two tensors: the gate and the value.
            pub fn new(x: impl Into<$Tensor<'a, T>>, v: impl Into<$Tensor<'a, T>>) -> Self {
                let (x, v) = (x.into(), v.into());
                $Pair(Places::Separate { x, v })
            }

            /// The halves of a contiguous `[rows, 2·n]` tensor, without a copy. `order` says which half is the gate.
            ///
            /// # Errors
            /// [`Error::Halves`] if the buffer is not such a tensor.
            pub fn halves(buffer: $Buffer, rows: usize, order: Halves) -> Result<Self> {
                let halves = order.of(buffer.len(), rows)?;
                let buffer = $Tensor {
                    buffer: Some(buffer),
                    rows: None,
                };
                Ok($Pair(Places::Halves { buffer, halves }))
            }

            /// One `[rows, 2·n]` tensor, without a copy, whose columns alternate: `block` columns of the gate, as many of the
            /// value, and so on. `order` says which of the two comes first. `block` is 1, as in `[rows, n, 2]` tensors, or a
            /// power of two from 8 to 256, and divides n; a call with another block fails with [`Error::Block`].
            pub fn interleaved(xv: impl Into<$Tensor<'a, T>>, order: Halves, block: usize) -> Self {
                let xv = xv.into();
                $Pair(Places::Interleaved { xv, order, block })
            }

            /// The number of elements of the gate's buffer.
            pub(super) fn len(&self) -> usize {
                match &self.0 {
                    Places::Separate { x, .. } => x.len(),
                    Places::Halves { halves: [x, _], .. } => x.len().unwrap_or(usize::MAX),
                    Places::Interleaved { xv, .. } => xv.len() / 2,
                }
            }

            /// The rows from which the shape of the gate is known, if they are given.
            pub(super) fn given(&self) -> Option<Rows> {
                match &self.0 {
                    Places::Separate { x, v } => x.given().or(v.given()),
                    Places::Halves { halves: [x, _], .. } => Some(*x),
                    Places::Interleaved { xv, .. } => xv.given().map(Rows::of_gate),
                }
            }

            /// Checks the tensors against the shape of the gate, and returns the rows of the gate and of the value; of an
            /// interleaved pair, twice those of both. Errors use the given names.
            pub(super) fn check(
                &self,
                names: [&'static str; 2],
                device: &Device,
                shape: Shape,
            ) -> Result<[Rows; 2]> {
                match &self.0 {
                    Places::Separate { x, v } => Ok([
                        x.check_rows(names[0], device, shape)?,
                        v.check_rows(names[1], device, shape)?,
                    ]),
                    Places::Halves { buffer, halves } => {
                        buffer.check_context(names[0], device)?;
                        for (name, half) in names.into_iter().zip(halves) {
                            shape.rows_of(name, buffer.len(), Some(*half))?;
                        }
                        Ok(*halves)
                    }
                    Places::Interleaved { xv, order, block } => {
                        Interleaving::new(shape.cols, *order, *block)?;
                        Ok([xv.check_rows(names[0], device, shape.of_both())?; 2])
                    }
                }
            }

            /// The matrices of the rows that `check` returned.
            pub(super) fn resolve<'b>(
                &'b $($mut)? self,
                addresses: &mut Addresses<'b>,
                [of_x, of_v]: [Rows; 2],
            ) -> raw::Pair {
                match &$($mut)? self.0 {
                    Places::Separate { x, v } => raw::Pair::Separate {
                        x: addresses.$matrix(x, of_x),
                        v: addresses.$matrix(v, of_v),
                    },
                    Places::Halves { buffer, .. } => {
                        let base = addresses.$address(buffer);
                        let [x, v] = [of_x, of_v].map(|rows| matrix::<T>(base, rows));
                        raw::Pair::Separate { x, v }
                    }
                    Places::Interleaved { xv, order, block } => raw::Pair::Interleaved {
                        xv: addresses.$matrix(xv, of_x),
                        order: *order,
                        block: *block as u64,
                    },
                }
            }
        }

        impl<'a, T, X: Into<$Tensor<'a, T>>, V: Into<$Tensor<'a, T>>> From<(X, V)> for $Pair<'a, T> {
            fn from((x, v): (X, V)) -> Self {
                $Pair::new(x, v)
            }
        }
    };
}
pairs!(Pair of Input: &'a dyn DevicePtr<T>, input, input_rows);
pairs!(PairMut of Output: &'a mut dyn DevicePtrMut<T>, output, output_rows, mut);
