//! The tensors of a call: whole slices, or rows of a larger matrix.

use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::shape::{Halves, Interleaving, Rows, Shape};

/// A tensor of T that a call reads. A reference to a slice, an array or a vector converts into the tensor of all its
/// elements.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a, T> {
    elements: &'a [T],
    /// `None` for all elements, in the shape of the call.
    rows: Option<Rows>,
}

/// A tensor of T that a call writes, or reads and writes in place. Elements between its rows are not touched. A mutable
/// reference to a slice, an array or a vector converts into the tensor of all its elements.
#[derive(Debug)]
pub struct Output<'a, T> {
    elements: &'a mut [T],
    rows: Option<Rows>,
}

impl<'a, T> Input<'a, T> {
    /// A tensor of the given rows of a slice.
    pub fn rows(elements: &'a [T], rows: Rows) -> Self {
        Input {
            elements,
            rows: Some(rows),
        }
    }

    pub(crate) fn given(&self) -> Option<Rows> {
        self.rows
    }

    pub(crate) fn len(&self) -> usize {
        self.elements.len()
    }

    /// Checks the tensor against the shape of the call, and returns its elements and rows.
    pub(crate) fn check(self, what: &'static str, shape: Shape) -> Result<Checked<&'a [T]>> {
        Ok(Checked {
            rows: shape.rows_of(what, self.elements.len(), self.rows)?,
            elements: self.elements,
        })
    }

    /// Like `check`, for an activation, which allows no groups of rows.
    pub(crate) fn check_rows(self, what: &'static str, shape: Shape) -> Result<Checked<&'a [T]>> {
        self.check(what, shape)?.of_one_pitch(what)
    }
}

impl<'a, T> Output<'a, T> {
    /// A tensor of the given rows of a slice.
    pub fn rows(elements: &'a mut [T], rows: Rows) -> Self {
        Output {
            elements,
            rows: Some(rows),
        }
    }

    pub(crate) fn given(&self) -> Option<Rows> {
        self.rows
    }

    pub(crate) fn len(&self) -> usize {
        self.elements.len()
    }

    /// The same tensor, where `U` is the same type as `T`.
    pub(crate) fn cast<U: Element>(self) -> Output<'a, U>
    where
        T: Element,
    {
        Output {
            elements: bytemuck::cast_slice_mut(self.elements),
            rows: self.rows,
        }
    }

    pub(crate) fn check(self, what: &'static str, shape: Shape) -> Result<Checked<&'a mut [T]>> {
        Ok(Checked {
            rows: shape.rows_of(what, self.elements.len(), self.rows)?,
            elements: self.elements,
        })
    }

    /// Like `check`, for an activation, which allows no groups of rows.
    pub(crate) fn check_rows(
        self,
        what: &'static str,
        shape: Shape,
    ) -> Result<Checked<&'a mut [T]>> {
        self.check(what, shape)?.of_one_pitch(what)
    }
}

macro_rules! whole {
    ($([$($generics:tt)*] $from:ty;)*) => {$(
        impl<'a, T, $($generics)*> From<&'a $from> for Input<'a, T> {
            fn from(elements: &'a $from) -> Self {
                Input { elements, rows: None }
            }
        }

        impl<'a, T, $($generics)*> From<&'a mut $from> for Output<'a, T> {
            fn from(elements: &'a mut $from) -> Self {
                Output { elements, rows: None }
            }
        }
    )*};
}
whole! {
    [] [T];
    [] Vec<T>;
    [const N: usize] [T; N];
}

/// A checked tensor: its rows lie inside its elements and do not overlap.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checked<E> {
    pub(crate) elements: E,
    pub(crate) rows: Rows,
}

impl<E> Checked<E> {
    fn of_one_pitch(mut self, what: &'static str) -> Result<Checked<E>> {
        if self.rows.groups.is_some() {
            return Err(Error::Groups { what });
        }
        if self.rows.cols == 0 {
            // Rows without columns need no work, however many they are.
            self.rows.rows = 0;
        }
        Ok(self)
    }
}

impl<'a, T: Element> Checked<&'a [T]> {
    /// The same tensor, where `U` is the same type as `T`.
    pub(crate) fn cast<U: Element>(self) -> Checked<&'a [U]> {
        Checked {
            elements: bytemuck::cast_slice(self.elements),
            rows: self.rows,
        }
    }
}

impl<'a, T: Element> Checked<&'a mut [T]> {
    /// The same tensor, where `U` is the same type as `T`.
    pub(crate) fn cast_mut<U: Element>(self) -> Checked<&'a mut [U]> {
        Checked {
            elements: bytemuck::cast_slice_mut(self.elements),
            rows: self.rows,
        }
    }

    pub(crate) fn reborrow(&mut self) -> Checked<&mut [T]> {
        Checked {
            elements: &mut *self.elements,
            rows: self.rows,
        }
    }
}

impl<'a, T> Checked<&'a [T]> {
    pub(crate) fn rows(self) -> impl Iterator<Item = &'a [T]> {
        // Rows without elements may have any offset, also beyond the buffer.
        (self.rows.ranges()).map(|range| self.elements.get(range).unwrap_or_default())
    }
}

impl<'a, T> Checked<&'a mut [T]> {
    pub(crate) fn rows_mut(self) -> impl Iterator<Item = &'a mut [T]> {
        let mut rest = self.elements;
        let mut at = 0;
        self.rows.ranges().map(move |range| {
            let row = rest
                .split_off_mut(range.start - at..)
                .and_then(|mut from| {
                    let row = from.split_off_mut(..range.len());
                    rest = from;
                    row
                })
                .unwrap_or_default();
            at = range.end;
            row
        })
    }
}

/// The gate x and the value v of a gated activation, which a call reads: two tensors, or one that holds both. A tuple
/// `(x, v)` converts into a pair.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a, T>(Inputs<'a, T>);

#[derive(Clone, Copy, Debug)]
enum Inputs<'a, T> {
    Separate {
        x: Input<'a, T>,
        v: Input<'a, T>,
    },
    /// A `[rows, 2·n]` tensor in whose columns gate and value alternate.
    Interleaved {
        xv: Input<'a, T>,
        order: Halves,
        block: usize,
    },
}

impl<'a, T> Pair<'a, T> {
    /// A pair of two tensors: the gate and the value.
    pub fn new(x: impl Into<Input<'a, T>>, v: impl Into<Input<'a, T>>) -> Self {
        let (x, v) = (x.into(), v.into());
        Pair(Inputs::Separate { x, v })
    }

    /// The halves of a contiguous `[rows, 2·n]` tensor. `order` says which half is the gate.
    ///
    /// # Errors
    /// [`Error::Halves`](crate::Error::Halves) if the slice is not such a tensor.
    pub fn halves(elements: &'a [T], rows: usize, order: Halves) -> Result<Self> {
        let [x, v] = order.of(elements.len(), rows)?;
        Ok(Pair::new(
            Input::rows(elements, x),
            Input::rows(elements, v),
        ))
    }

    /// One `[rows, 2·n]` tensor whose columns alternate: `block` columns of the gate, as many of the value, and so on. `order`
    /// says which of the two comes first. `block` is 1, as in `[rows, n, 2]` tensors, or a power of two from 8 to 256, and
    /// divides n; a call with another block fails with [`Error::Block`](crate::Error::Block).
    pub fn interleaved(xv: impl Into<Input<'a, T>>, order: Halves, block: usize) -> Self {
        let xv = xv.into();
        Pair(Inputs::Interleaved { xv, order, block })
    }

    /// The rows from which the shape of the gate is known, if they are given.
    pub(crate) fn given(&self) -> Option<Rows> {
        match &self.0 {
            Inputs::Separate { x, v } => x.given().or(v.given()),
            Inputs::Interleaved { xv, .. } => xv.given().map(Rows::of_gate),
        }
    }

    /// The number of elements of the gate's buffer.
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Inputs::Separate { x, .. } => x.len(),
            Inputs::Interleaved { xv, .. } => xv.len() / 2,
        }
    }

    /// Checks the tensors against the shape of the gate.
    pub(crate) fn check(self, shape: Shape) -> Result<CheckedInputs<'a, T>> {
        Ok(match self.0 {
            Inputs::Separate { x, v } => CheckedInputs {
                x: x.check_rows("x", shape)?,
                v: Some(v.check_rows("v", shape)?),
                interleaving: None,
            },
            Inputs::Interleaved { xv, order, block } => CheckedInputs {
                interleaving: Some(Interleaving::new(shape.cols, order, block)?),
                x: xv.check_rows("x", shape.of_both())?,
                v: None,
            },
        })
    }
}

impl<'a, T, X: Into<Input<'a, T>>, V: Into<Input<'a, T>>> From<(X, V)> for Pair<'a, T> {
    fn from((x, v): (X, V)) -> Self {
        Pair::new(x, v)
    }
}

/// The outputs of the gate and of the value, such as dx and dv: two tensors, or one that holds both. A tuple converts into a
/// pair.
#[derive(Debug)]
pub struct PairMut<'a, T>(Place<'a, T>);

#[derive(Debug)]
enum Place<'a, T> {
    Separate {
        x: Output<'a, T>,
        v: Output<'a, T>,
    },
    Halves {
        elements: &'a mut [T],
        rows: usize,
        order: Halves,
    },
    Interleaved {
        xv: Output<'a, T>,
        order: Halves,
        block: usize,
    },
}

impl<'a, T> PairMut<'a, T> {
    /// A pair of two tensors: the gate and the value.
    pub fn new(x: impl Into<Output<'a, T>>, v: impl Into<Output<'a, T>>) -> Self {
        let (x, v) = (x.into(), v.into());
        PairMut(Place::Separate { x, v })
    }

    /// The halves of a contiguous `[rows, 2·n]` tensor. `order` says which half is the gate.
    ///
    /// # Errors
    /// [`Error::Halves`](crate::Error::Halves) if the slice is not such a tensor.
    pub fn halves(elements: &'a mut [T], rows: usize, order: Halves) -> Result<Self> {
        order.of(elements.len(), rows)?;
        Ok(PairMut(Place::Halves {
            elements,
            rows,
            order,
        }))
    }

    /// One `[rows, 2·n]` tensor whose columns alternate, as those of [`Pair::interleaved`].
    pub fn interleaved(xv: impl Into<Output<'a, T>>, order: Halves, block: usize) -> Self {
        let xv = xv.into();
        PairMut(Place::Interleaved { xv, order, block })
    }

    /// The rows from which the shape of the gate is known, if they are given.
    pub(crate) fn given(&self) -> Option<Rows> {
        match &self.0 {
            Place::Separate { x, v } => x.given().or(v.given()),
            Place::Halves {
                elements,
                rows,
                order,
            } => order.of(elements.len(), *rows).ok().map(|[x, _]| x),
            Place::Interleaved { xv, .. } => xv.given().map(Rows::of_gate),
        }
    }

    /// The number of elements of the gate's buffer.
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Place::Separate { x, .. } => x.len(),
            Place::Halves { elements, .. } => elements.len() / 2,
            Place::Interleaved { xv, .. } => xv.len() / 2,
        }
    }

    /// Checks the tensors against the shape of the gate. Errors use the given names.
    pub(crate) fn check(
        self,
        [x_name, v_name]: [&'static str; 2],
        shape: Shape,
    ) -> Result<CheckedPair<'a, T>> {
        match self.0 {
            Place::Separate { x, v } => Ok(CheckedPair::Separate(
                x.check_rows(x_name, shape)?,
                v.check_rows(v_name, shape)?,
            )),
            Place::Halves {
                elements,
                rows,
                order,
            } => {
                let [x, v] = order.of(elements.len(), rows)?;
                shape.rows_of(x_name, elements.len(), Some(x))?;
                shape.rows_of(v_name, elements.len(), Some(v))?;
                Ok(CheckedPair::Halves {
                    elements,
                    width: shape.cols,
                    order,
                })
            }
            Place::Interleaved { xv, order, block } => {
                let interleaving = Interleaving::new(shape.cols, order, block)?;
                let xv = xv.check_rows(x_name, shape.of_both())?;
                Ok(CheckedPair::Interleaved(xv, interleaving))
            }
        }
    }
}

impl<'a, T, X: Into<Output<'a, T>>, V: Into<Output<'a, T>>> From<(X, V)> for PairMut<'a, T> {
    fn from((x, v): (X, V)) -> Self {
        PairMut::new(x, v)
    }
}

/// A checked gate and value: two tensors, or one in whose columns both alternate.
pub(crate) struct CheckedInputs<'a, T> {
    pub(crate) x: Checked<&'a [T]>,
    pub(crate) v: Option<Checked<&'a [T]>>,
    pub(crate) interleaving: Option<Interleaving>,
}

/// A checked pair of tensors: their rows lie inside their elements and do not overlap.
pub(crate) enum CheckedPair<'a, T> {
    Separate(Checked<&'a mut [T]>, Checked<&'a mut [T]>),
    Halves {
        elements: &'a mut [T],
        /// The number of elements of half a row.
        width: usize,
        order: Halves,
    },
    Interleaved(Checked<&'a mut [T]>, Interleaving),
}

impl<'a, T> CheckedPair<'a, T> {
    pub(crate) fn is_dense(&self) -> bool {
        match self {
            CheckedPair::Separate(x, v) => x.rows.is_dense() && v.rows.is_dense(),
            CheckedPair::Halves {
                elements, width, ..
            } => elements.len() <= 2 * width,
            CheckedPair::Interleaved(xv, _) => xv.rows.is_dense(),
        }
    }
}
