//! [`Segment`]: contiguous elements of all tensors of a call.

use super::tensor::{Checked, CheckedPair};
use crate::shape::{Halves, Interleaving};

/// Elements that are contiguous in every tensor of a call: a row, or a part of a row.
pub struct Segment<'a, T> {
    /// x; `None` if x is in `out` (in place). With `xv`, twice as many elements: x and v.
    pub x: Option<&'a [T]>,
    /// The value v of a gated form; in a gated backward, `None` if v is in `dv`.
    pub v: Option<&'a [T]>,
    /// dy of a backward; `None` if dy is in `out`.
    pub dy: Option<&'a [T]>,
    /// y of a forward, dx of a backward. With `dxv`, twice as many elements: dx and dv.
    pub out: &'a mut [T],
    /// dv of a gated backward; otherwise empty.
    pub dv: &'a mut [T],
    /// y of a backward that recomputes y.
    pub y: Option<&'a mut [T]>,
    /// How x and v alternate in `x`, if they do.
    pub xv: Option<Interleaving>,
    /// How dx and dv alternate in `out`, if they do.
    pub dxv: Option<Interleaving>,
}

impl<'a, T> Segment<'a, T> {
    /// The number of elements of each tensor.
    pub fn len(&self) -> usize {
        self.out.len() / (1 + usize::from(self.dxv.is_some()))
    }

    /// Splits off the first `len` elements, or all if there are fewer. With `xv` or `dxv`, `len` must be a multiple of their
    /// blocks, unless it is all.
    pub fn take(&mut self, len: usize) -> Segment<'a, T> {
        let len = len.min(self.len());
        let of_pair = |pair: Option<Interleaving>| len * (1 + usize::from(pair.is_some()));
        fn first<'a, T>(rest: &mut &'a [T], len: usize) -> &'a [T] {
            rest.split_off(..len).unwrap_or_default()
        }
        fn first_mut<'a, T>(rest: &mut &'a mut [T], len: usize) -> &'a mut [T] {
            rest.split_off_mut(..len).unwrap_or_default()
        }
        Segment {
            x: self.x.as_mut().map(|x| first(x, of_pair(self.xv))),
            v: self.v.as_mut().map(|v| first(v, len)),
            dy: self.dy.as_mut().map(|dy| first(dy, len)),
            out: first_mut(&mut self.out, of_pair(self.dxv)),
            dv: first_mut(&mut self.dv, len),
            y: self.y.as_mut().map(|y| first_mut(y, len)),
            xv: self.xv,
            dxv: self.dxv,
        }
    }
}

/// The checked tensors of a call.
pub struct Tensors<'a, T> {
    /// With `xv`, x and v.
    pub x: Option<Checked<&'a [T]>>,
    pub v: Option<Checked<&'a [T]>>,
    pub xv: Option<Interleaving>,
    pub dy: Option<Checked<&'a [T]>>,
    pub out: Out<'a, T>,
    pub y: Option<Checked<&'a mut [T]>>,
}

/// The outputs of a call.
pub enum Out<'a, T> {
    /// y or dx.
    Plain(Checked<&'a mut [T]>),
    /// dx and dv.
    Pair(CheckedPair<'a, T>),
}

impl<'a, T> Tensors<'a, T> {
    /// A segment for each row of the call, or a single one if all tensors are contiguous.
    pub fn segments(self) -> Vec<Segment<'a, T>> {
        let Tensors {
            x,
            v,
            xv,
            dy,
            out,
            y,
        } = self;
        let inputs =
            [&x, &v, &dy].map(|input| input.as_ref().is_none_or(|input| input.rows.is_dense()));
        let out_is_dense = match &out {
            Out::Plain(out) => out.rows.is_dense(),
            Out::Pair(pair) => pair.is_dense(),
        };
        let all = inputs.iter().all(|&dense| dense)
            && out_is_dense
            && y.as_ref().is_none_or(|y| y.rows.is_dense());
        // Contiguous rows are treated as a single row.
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
        let dxv = match &out {
            Out::Pair(CheckedPair::Interleaved(_, interleaving)) => Some(*interleaving),
            _ => None,
        };
        let out: Box<dyn Iterator<Item = (&'a mut [T], &'a mut [T])> + 'a> = match out {
            Out::Plain(out) | Out::Pair(CheckedPair::Interleaved(out, _)) => Box::new(
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
            xv,
            dxv,
        })
        .collect()
    }
}
