//! Layouts of candle tensors as rows with a pitch, which is what xact reads and writes.

use candle_core::{Layout, Result, Tensor};
use xact::Rows;

/// Rows of equal length in a buffer. All numbers are in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) offset: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) pitch: usize,
    /// The number of rows of a group, and the number of elements from one group to the next.
    pub(crate) groups: Option<(usize, usize)>,
}

impl View {
    /// Rows without gaps, from the start of a buffer.
    pub(crate) fn dense(rows: usize, cols: usize) -> View {
        View {
            offset: 0,
            rows,
            cols,
            pitch: cols,
            groups: None,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0 || self.cols == 0
    }

    pub(crate) fn rows(self) -> Rows {
        let rows = Rows::new(self.rows, self.cols)
            .pitch(self.pitch)
            .offset(self.offset);
        match self.groups {
            Some((len, pitch)) => rows.groups(len, pitch),
            None => rows,
        }
    }

    /// The first and the second half of each row.
    pub(crate) fn halves(self) -> [View; 2] {
        let first = View {
            cols: self.cols / 2,
            ..self
        };
        let second = View {
            offset: self.offset + first.cols,
            ..first
        };
        [first, second]
    }
}

/// The size and the stride of a dimension.
type Axis = (usize, usize);

/// The dimensions whose size is not 1. A dimension of size 1 may have any stride.
fn axes(layout: &Layout) -> Vec<Axis> {
    let axes = layout
        .dims()
        .iter()
        .copied()
        .zip(layout.stride().iter().copied());
    axes.filter(|&(size, _)| size != 1).collect()
}

/// Merges dimensions into one: its size and its stride. `None` if the strides do not allow it.
fn collapsed(axes: &[Axis]) -> Option<Axis> {
    let Some((&last, outer)) = axes.split_last() else {
        return Some((1, 0));
    };
    let mut all = last;
    for &(size, stride) in outer.iter().rev() {
        if stride != all.0 * all.1 {
            return None;
        }
        all.0 *= size;
    }
    Some(all)
}

/// Rows that consist of the dimensions from number `at` on. `None` if the rows have gaps inside, or more than one pitch.
fn view_at(offset: usize, axes: &[Axis], at: usize) -> Option<View> {
    let (outer, inner) = axes.split_at_checked(at)?;
    let (cols, stride) = collapsed(inner)?;
    let (rows, pitch) = collapsed(outer)?;
    let is_line = cols <= 1 || stride == 1;
    let is_apart = rows <= 1 || pitch >= cols;
    (is_line && is_apart).then_some(View {
        offset,
        rows,
        cols,
        pitch: if rows > 1 { pitch } else { cols },
        groups: None,
    })
}

/// Layouts of the same shape as rows of the same length, as long as possible. `None` if a tensor must be copied first.
pub(crate) fn common<const N: usize>(layouts: [&Layout; N]) -> Option<[View; N]> {
    let all = layouts.map(axes);
    let rank = all.iter().map(Vec::len).max()?;
    // At least one dimension is inside the rows: rows of one element would be slow.
    (0..rank.max(1)).find_map(|at| {
        let mut views = [View::dense(0, 0); N];
        for ((view, layout), axes) in views.iter_mut().zip(layouts).zip(&all) {
            *view = view_at(layout.start_offset(), axes, at)?;
        }
        Some(views)
    })
}

/// A layout whose rows are its last dimension. `None` if the tensor must be copied first. `groups` says whether the rows
/// may come in groups.
pub(crate) fn last_dimension(layout: &Layout, groups: bool) -> Option<View> {
    let (&cols, outer) = layout.dims().split_last()?;
    let stride = *layout.stride().last()?;
    let rows: usize = outer.iter().product();
    if rows == 0 || cols == 0 {
        return Some(View::dense(rows, cols));
    }
    if cols > 1 && stride != 1 {
        return None;
    }
    let outer = outer.iter().copied().zip(layout.stride().iter().copied());
    let outer: Vec<Axis> = outer.filter(|&(size, _)| size != 1).collect();
    let offset = layout.start_offset();
    if let Some((rows, pitch)) = collapsed(&outer) {
        let pitch = if rows > 1 { pitch } else { cols };
        return (pitch >= cols).then_some(View {
            offset,
            rows,
            cols,
            pitch,
            groups: None,
        });
    }
    (1..outer.len()).filter(|_| groups).find_map(|at| {
        let (count, group_pitch) = collapsed(&outer[..at])?;
        let (len, pitch) = collapsed(&outer[at..])?;
        let is_apart = pitch >= cols && group_pitch >= (len - 1) * pitch + cols;
        is_apart.then_some(View {
            offset,
            rows: count * len,
            cols,
            pitch,
            groups: Some((len, group_pitch)),
        })
    })
}

/// Returns the tensor if its layout `fits`, else a copy without gaps.
pub(crate) fn fitted(tensor: &Tensor, fits: impl Fn(&Layout) -> bool) -> Result<Tensor> {
    if fits(tensor.layout()) {
        Ok(tensor.clone())
    } else {
        tensor.contiguous()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn zeros(shape: &[usize]) -> Tensor {
        Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
    }

    /// The position of each element of a view, in order.
    fn places(view: View) -> Vec<usize> {
        let row = |r: usize| match view.groups {
            Some((len, pitch)) => r / len * pitch + r % len * view.pitch,
            None => r * view.pitch,
        };
        let row = |r| (0..view.cols).map(move |c| view.offset + row(r) + c);
        (0..view.rows).flat_map(row).collect()
    }

    /// The same positions, computed by candle.
    fn strided(tensor: &Tensor) -> Vec<usize> {
        tensor.strided_index().collect()
    }

    #[test]
    fn views_have_the_elements_of_the_tensor() {
        let whole = zeros(&[3, 4, 10]);
        let tensors = [
            whole.clone(),
            whole.narrow(2, 3, 5).unwrap(),
            whole.narrow(1, 1, 2).unwrap(),
            whole.narrow(0, 1, 1).unwrap(),
            whole.narrow(0, 1, 1).unwrap().narrow(2, 9, 1).unwrap(),
            whole.narrow(1, 2, 1).unwrap().narrow(2, 2, 7).unwrap(),
            whole.narrow(1, 0, 3).unwrap().narrow(2, 2, 7).unwrap(),
            whole.t().unwrap(),
            whole.transpose(0, 1).unwrap(),
            whole.unsqueeze(1).unwrap().unsqueeze(4).unwrap(),
            zeros(&[]),
            zeros(&[1]).broadcast_as((3, 5)).unwrap(),
            zeros(&[3, 1]).broadcast_as((3, 5)).unwrap(),
            zeros(&[1, 5]).broadcast_as((3, 5)).unwrap(),
            zeros(&[2, 3, 1]),
        ];
        let (mut with_rows, mut with_groups, mut copied) = (0, 0, 0);
        for tensor in &tensors {
            match common([tensor.layout()]) {
                Some([view]) => {
                    assert_eq!(places(view), strided(tensor), "{:?}", tensor.layout());
                    with_rows += 1;
                }
                None => copied += 1,
            }
            if let Some(view) = last_dimension(tensor.layout(), true) {
                assert_eq!(places(view), strided(tensor), "{:?}", tensor.layout());
                assert_eq!(Some(&view.cols), tensor.dims().last());
                with_groups += usize::from(view.groups.is_some());
            }
            if let Some(view) = last_dimension(tensor.layout(), false) {
                assert_eq!(view.groups, None);
            }
        }
        assert_eq!((with_rows, copied), (8, 7));
        assert!(with_groups >= 2, "{with_groups}");
    }

    #[test]
    fn tensors_of_one_shape_get_rows_of_one_length() {
        let packed = zeros(&[3, 4, 10]);
        let (x, v) = (
            packed.narrow(2, 0, 5).unwrap(),
            packed.narrow(2, 5, 5).unwrap(),
        );
        let [a, b] = common([x.layout(), v.layout()]).unwrap();
        assert_eq!((a.rows, a.cols, a.pitch, a.offset), (12, 5, 10, 0));
        assert_eq!((b.rows, b.cols, b.pitch, b.offset), (12, 5, 10, 5));
        let dense = zeros(&[3, 4, 5]);
        let [a, b] = common([x.layout(), dense.layout()]).unwrap();
        assert_eq!((a.pitch, b.pitch, a.cols, b.cols), (10, 5, 5, 5));
        let [a, _] = common([dense.layout(), dense.layout()]).unwrap();
        assert_eq!((a.rows, a.cols), (1, 60));
        // No dimension of the transposed tensor can be inside a row.
        let turned = zeros(&[5, 4, 3]).transpose(0, 2).unwrap();
        assert_eq!(common([turned.layout(), dense.layout()]), None);
    }
}
