//! The tensors of a call, row by row.

use super::tensor::{Checked, CheckedPair};
use crate::shape::Halves;

/// Elements that follow one another in every tensor of a call: a row, or a part of one.
pub struct Segment<'a, T> {
    /// The gate; `None`: where the result for it goes (y or dx).
    pub x: Option<&'a [T]>,
    /// The value, if gated; `None` in a backward: it is in `dv`.
    pub v: Option<&'a [T]>,
    /// Of a backward; `None`: it is in `out`.
    pub dy: Option<&'a [T]>,
    /// y of a forward, dx of a backward.
    pub out: &'a mut [T],
    /// Of a gated backward; else empty.
    pub dv: &'a mut [T],
    /// Of a backward, if y is computed again.
    pub y: Option<&'a mut [T]>,
}

impl<'a, T> Segment<'a, T> {
    /// Takes the first `len` elements off, or all.
    pub fn take(&mut self, len: usize) -> Segment<'a, T> {
        let len = len.min(self.out.len());
        fn first<'a, T>(rest: &mut &'a [T], len: usize) -> &'a [T] {
            rest.split_off(..len).unwrap_or_default()
        }
        fn first_mut<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
            rest.split_off_mut(..len).unwrap_or_default()
        }
        Segment {
            x: self.x.as_mut().map(|x| first(x, len)),
            v: self.v.as_mut().map(|v| first(v, len)),
            dy: self.dy.as_mut().map(|dy| first(dy, len)),
            out: first_mut(&mut self.out, len),
            dv: first_mut(&mut self.dv, len),
            y: self.y.as_mut().map(|y| first_mut(y, len)),
        }
    }
}

/// The tensors of a call as checked, for [`Segment`]s of their rows.
pub struct Tensors<'a, T> {
    pub x: Option<Checked<&'a [T]>>,
    pub v: Option<Checked<&'a [T]>>,
    pub dy: Option<Checked<&'a [T]>>,
    pub out: Out<'a, T>,
    pub y: Option<Checked<&'a mut [T]>>,
}

/// Where the result goes.
pub enum Out<'a, T> {
    /// y or dx.
    Plain(Checked<&'a mut [T]>),
    /// dx and dv.
    Pair(CheckedPair<'a, T>),
}

impl<'a, T> Tensors<'a, T> {
    /// A row of all of them for each row of the call; a single one if all are dense.
    pub fn segments(self) -> Vec<Segment<'a, T>> {
        let Tensors { x, v, dy, out, y } = self;
        let inputs =
            [&x, &v, &dy].map(|input| input.as_ref().is_none_or(|input| input.rows.is_dense()));
        let out_is_dense = match &out {
            Out::Plain(out) => out.rows.is_dense(),
            Out::Pair(pair) => pair.is_dense(),
        };
        let all = inputs.iter().all(|&dense| dense)
            && out_is_dense
            && y.as_ref().is_none_or(|y| y.rows.is_dense());
        // A row without gaps before and after it is as good as any number of them.
        fn joined<E>(mut tensor: Checked<E>, all: bool) -> Checked<E> {
            if all {
                let len = tensor.rows.rows * tensor.rows.cols;
                tensor.rows.rows = tensor.rows.rows.min(1);
                (tensor.rows.cols, tensor.rows.pitch) = (len, len);
            }
            tensor
        }
        let mut x = x.map(|x| joined(x, all).rows());
        let mut v = v.map(|v| joined(v, all).rows());
        let mut dy = dy.map(|dy| joined(dy, all).rows());
        let mut y = y.map(|y| joined(y, all).rows_mut());
        let out: Box<dyn Iterator<Item = (&'a mut [T], &'a mut [T])> + 'a> = match out {
            Out::Plain(out) => Box::new(
                joined(out, all)
                    .rows_mut()
                    .map(|out| (out, [].as_mut_slice())),
            ),
            Out::Pair(CheckedPair::Separate(dx, dv)) => {
                Box::new(joined(dx, all).rows_mut().zip(joined(dv, all).rows_mut()))
            }
            Out::Pair(CheckedPair::Halves {
                elements,
                width,
                order,
            }) => Box::new(
                elements
                    .chunks_exact_mut((2 * width).max(1))
                    .map(move |row| {
                        let (first, second) = row.split_at_mut(width);
                        match order {
                            Halves::GateFirst => (first, second),
                            Halves::ValueFirst => (second, first),
                        }
                    }),
            ),
        };
        out.map(|(out, dv)| Segment {
            x: x.as_mut().and_then(Iterator::next),
            v: v.as_mut().and_then(Iterator::next),
            dy: dy.as_mut().and_then(Iterator::next),
            out,
            dv,
            y: y.as_mut().and_then(Iterator::next),
        })
        .collect()
    }
}
