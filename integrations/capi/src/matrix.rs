//! Matrices in host memory, and checks for overlap.

#![allow(unsafe_code)]

use xact::cpu::{Input, Output};
use xact::span::Span;
use xact::{Element, Error, Rows};

use crate::memory;
use crate::status::Result;
use crate::types::*;

/// A checked matrix of the caller: its pointer is aligned and not null, and its rows do not overlap.
pub struct Tensor<T> {
    first: *mut T,
    span: Span,
    rows: usize,
    cols: usize,
    pitch: usize,
    /// The number of rows of a group, and the group pitch in elements; `None` if one pitch describes all rows.
    groups: Option<(usize, usize)>,
}

impl From<xact_matrix> for xact_logits_matrix {
    fn from(xact_matrix { ptr, pitch }: xact_matrix) -> xact_logits_matrix {
        xact_logits_matrix {
            ptr,
            pitch,
            group_rows: 0,
            group_pitch: 0,
        }
    }
}

impl<T: Element> Tensor<T> {
    pub fn new(
        what: &'static str,
        matrix: impl Into<xact_logits_matrix>,
        rows: u64,
        cols: u64,
    ) -> Result<Tensor<T>> {
        let xact_logits_matrix {
            ptr,
            mut pitch,
            mut group_rows,
            group_pitch,
        } = matrix.into();
        let too_large = Error::TooLarge { rows, cols };
        if pitch == 0 {
            pitch = cols;
        }
        // Groups that a single pitch also describes are dropped.
        if group_rows == 1 {
            (pitch, group_rows) = (group_pitch, 0);
        } else if rows == 0
            || rows == group_rows
            || pitch.checked_mul(group_rows) == Some(group_pitch)
        {
            group_rows = 0;
        }
        if rows > 1 && pitch < cols {
            return Err(Error::Pitch { what, pitch, cols }.into());
        }
        let (address, size) = (ptr.addr() as u64, size_of::<T>() as u64);
        let span = if group_rows == 0 {
            Span::new(what, address, rows, cols, pitch, size)?
        } else {
            if !rows.is_multiple_of(group_rows) {
                let expected = rows.checked_next_multiple_of(group_rows);
                return Err(Error::Length {
                    what: "labels",
                    expected: expected.unwrap_or(0),
                    got: rows,
                }
                .into());
            }
            let len = pitch.checked_mul(group_rows - 1);
            let len = len.and_then(|len| len.checked_add(cols));
            let len = len.ok_or(too_large.clone())?;
            if rows > group_rows && group_pitch < len {
                return Err(Error::GroupPitch {
                    what,
                    pitch: group_pitch,
                    len,
                }
                .into());
            }
            Span::new(what, address, rows / group_rows, len, group_pitch, size)?
        };
        memory::check_addressable(&span, cols)?;
        let count = |n: u64| usize::try_from(n).map_err(|_| too_large.clone());
        Ok(Tensor {
            first: ptr.cast(),
            span,
            rows: count(rows)?,
            cols: count(cols)?,
            pitch: count(pitch)?,
            groups: match group_rows {
                0 => None,
                rows => Some((count(rows)?, count(group_pitch)?)),
            },
        })
    }

    pub fn span(&self) -> &Span {
        &self.span
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The positions of the rows, for `xact::cpu`.
    fn layout(&self) -> Rows {
        let rows = Rows::new(self.rows, self.cols).pitch(self.pitch);
        match self.groups {
            Some((group, pitch)) => rows.groups(group, pitch),
            None => rows,
        }
    }

    /// The number of elements from the first to the last, including the gaps between rows.
    fn len(&self) -> usize {
        let range = self.span.range();
        (range.end - range.start) as usize / size_of::<T>()
    }

    /// Whether the byte range of this matrix, gaps included, overlaps none of the others'.
    pub fn is_apart_from(&self, others: &[Option<&Tensor<T>>]) -> bool {
        let a = self.span.range();
        others.iter().flatten().all(|other| {
            let b = other.span.range();
            a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start
        })
    }

    /// Whether both have the same address and layout.
    pub fn is(&self, other: &Tensor<T>) -> bool {
        match (self.groups, other.groups) {
            (None, None) => self.span.is_same(&other.span),
            _ => (self.first, self.layout()) == (other.first, other.layout()),
        }
    }

    /// The matrix as an input.
    ///
    /// # Safety
    /// The caller vouches for the elements; no byte of the range, gaps included, is written while the input lives.
    pub unsafe fn input<'a>(&self) -> Input<'a, T> {
        let elements: &[T] = match self.len() {
            0 => &[],
            // SAFETY: it is aligned and not null; the caller vouches for the elements.
            len => unsafe { std::slice::from_raw_parts(self.first, len) },
        };
        Input::rows(elements, self.layout())
    }

    /// The matrix as an output.
    ///
    /// # Safety
    /// The caller vouches for the elements; no other code uses a byte of the range, gaps included, while the output lives.
    pub unsafe fn output<'a>(&self) -> Output<'a, T> {
        let elements: &mut [T] = match self.len() {
            0 => &mut [],
            // SAFETY: it is aligned and not null; the caller vouches for the elements.
            len => unsafe { std::slice::from_raw_parts_mut(self.first, len) },
        };
        Output::rows(elements, self.layout())
    }

    /// If this and `other` are the halves of the rows of one matrix, the elements of that matrix, and whether this is the
    /// first half.
    ///
    /// # Safety
    /// The conditions of `output`, for both matrices.
    pub unsafe fn halves<'a>(&self, other: &Tensor<T>) -> Option<(&'a mut [T], bool)> {
        let is_half = |tensor: &Tensor<T>| {
            tensor.groups.is_none() && Some(tensor.pitch) == tensor.cols.checked_mul(2)
        };
        if self.len() == 0 || !is_half(self) || !is_half(other) {
            return None;
        }
        let (a, b) = (self.first.addr(), other.first.addr());
        if a.abs_diff(b) != self.cols * size_of::<T>() {
            return None;
        }
        let first = if a < b { self.first } else { other.first };
        // SAFETY: from the first element of one to the last of the other; the caller vouches for both.
        let elements = unsafe { std::slice::from_raw_parts_mut(first, self.rows * self.pitch) };
        Some((elements, a < b))
    }

    /// A temporary buffer without gaps, for results that cannot be written to the matrix directly.
    pub fn copy(&self) -> Vec<T> {
        vec![T::from_f64(0.0); self.rows * self.cols]
    }

    /// The layout of the temporary buffer.
    pub fn dense(&self) -> Rows {
        Rows::new(self.rows, self.cols)
    }

    /// Copies the temporary buffer to the matrix.
    ///
    /// # Safety
    /// The caller vouches for the elements.
    pub unsafe fn store(&self, copy: &[T]) {
        for (row, values) in copy.chunks_exact(self.cols.max(1)).enumerate() {
            let start = match self.groups {
                Some((group, pitch)) => row / group * pitch + row % group * self.pitch,
                None => row * self.pitch,
            };
            // SAFETY: the row is inside of the matrix, and apart from the copy.
            unsafe {
                let row = self.first.add(start);
                row.copy_from_nonoverlapping(values.as_ptr(), values.len());
            }
        }
    }
}

/// The buffers that a call reads and writes. Fails if an output overlaps another buffer.
#[derive(Default)]
pub struct Buffers {
    read: Vec<Span>,
    written: Vec<Span>,
}

impl Buffers {
    pub fn read(&mut self, span: Span) {
        self.read.push(span);
    }

    /// Adds an output. Fails if it overlaps another buffer.
    pub fn write(&mut self, span: Span) -> Result<()> {
        self.write_over(span, |_| false)
    }

    /// As `write`, but the output may overlap the inputs for which `may_be` returns true.
    pub fn write_over(&mut self, span: Span, may_be: impl Fn(&Span) -> bool) -> Result<()> {
        let read = self.read.iter().filter(|&read| !may_be(read));
        for other in read.chain(&self.written) {
            span.disjoint_from(other)?;
        }
        self.written.push(span);
        Ok(())
    }
}
