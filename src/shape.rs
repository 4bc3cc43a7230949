//! [`Rows`], [`Halves`] and [`Interleaving`]: how a tensor lies in a buffer, for slices and for device memory.

use std::ops::Range;

use crate::error::{Error, Result, check_length};

/// How a `[rows, cols]` tensor lies in a buffer: the offset of its first element, the row pitch and, for logits, groups of
/// rows. All numbers are in elements.
///
/// ```
/// use xact::Rows;
/// // The last 3 columns of a [4, 10] matrix.
/// let rows = Rows::new(4, 3).pitch(10).offset(7);
/// // logits[:, :-1] of a [2, 5, 100] tensor: two groups of 4 rows each.
/// let view = Rows::new(8, 100).groups(4, 500);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    pub(crate) offset: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) pitch: usize,
    pub(crate) groups: Option<Groups>,
}

/// A second pitch, between groups of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Groups {
    /// The number of rows of a group.
    pub(crate) rows: usize,
    /// Elements from the start of one group to the start of the next.
    pub(crate) pitch: usize,
}

impl Rows {
    /// A contiguous `[rows, cols]` tensor that begins at the first element of the buffer.
    pub fn new(rows: usize, cols: usize) -> Rows {
        Rows {
            offset: 0,
            rows,
            cols,
            pitch: cols,
            groups: None,
        }
    }

    /// Sets the row pitch: the elements from the start of one row to the start of the next, at least `cols`. The default is
    /// `cols`.
    #[must_use]
    pub fn pitch(mut self, pitch: usize) -> Rows {
        self.pitch = pitch;
        self
    }

    /// Sets the index of the first element of the first row. The default is 0.
    #[must_use]
    pub fn offset(mut self, offset: usize) -> Rows {
        self.offset = offset;
        self
    }

    /// Divides the rows into groups of `rows` rows, with `pitch` elements from the start of one group to the start of the
    /// next. The view `logits[:, :-1]` of a `[B, S, V]` tensor has groups of S − 1 rows and a group pitch of S·V. Only
    /// logits, hidden states and their gradients may have groups; other tensors give [`Error::Groups`].
    #[must_use]
    pub fn groups(mut self, rows: usize, pitch: usize) -> Rows {
        self.groups = Some(Groups { rows, pitch });
        self
    }

    /// The number of elements of the rows; `None` if it overflows.
    pub(crate) fn len(&self) -> Option<usize> {
        self.rows.checked_mul(self.cols)
    }

    /// The number of elements that a buffer needs to hold these rows; `None` if it overflows.
    fn end(&self) -> Option<usize> {
        if self.rows == 0 || self.cols == 0 {
            return Some(0);
        }
        let last = self.rows - 1;
        let start = match self.groups {
            Some(groups) if groups.rows > 0 => {
                let group = (last / groups.rows).checked_mul(groups.pitch)?;
                // The longest group, which need not be the last.
                let row = (groups.rows - 1).min(last).checked_mul(self.pitch)?;
                group.checked_add(row)?
            }
            _ => last.checked_mul(self.pitch)?,
        };
        start.checked_add(self.offset)?.checked_add(self.cols)
    }

    /// Fails unless these rows lie inside a buffer of `len` elements and do not overlap each other.
    pub(crate) fn check(&self, what: &'static str, len: usize) -> Result<()> {
        let mut of_one_group = self.rows;
        if let Some(groups) = self.groups {
            if self.rows > 0 && (groups.rows == 0 || !self.rows.is_multiple_of(groups.rows)) {
                return Err(Error::Length {
                    what,
                    expected: self.rows.checked_next_multiple_of(groups.rows).unwrap_or(0) as u64,
                    got: self.rows as u64,
                });
            }
            of_one_group = groups.rows;
            if self.rows > groups.rows {
                let len = (groups.rows - 1).checked_mul(self.pitch);
                let len = len.and_then(|len| len.checked_add(self.cols));
                if len.is_none_or(|len| groups.pitch < len) {
                    return Err(Error::GroupPitch {
                        what,
                        pitch: groups.pitch as u64,
                        len: len.map_or(u64::MAX, |len| len as u64),
                    });
                }
            }
        }
        if of_one_group > 1 && self.pitch < self.cols {
            return Err(Error::Pitch {
                what,
                pitch: self.pitch as u64,
                cols: self.cols as u64,
            });
        }
        match self.end() {
            Some(end) if end <= len => Ok(()),
            end => Err(Error::Length {
                what,
                expected: end.map_or(u64::MAX, |n| n as u64),
                got: len as u64,
            }),
        }
    }

    /// The range of elements of each row.
    pub(crate) fn ranges(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.rows).map(move |row| {
            let start = match self.groups {
                Some(groups) => row / groups.rows * groups.pitch + row % groups.rows * self.pitch,
                None => row * self.pitch,
            };
            self.offset + start..self.offset + start + self.cols
        })
    }

    /// The shape of the gate, if these are rows of gate and value.
    pub(crate) fn of_gate(self) -> Rows {
        Rows::new(self.rows, self.cols / 2)
    }

    /// Whether the rows are contiguous.
    pub(crate) fn is_dense(&self) -> bool {
        self.groups.is_none() && (self.rows <= 1 || self.pitch == self.cols)
    }
}

/// Which half of each row of a `[rows, 2·n]` tensor is the gate, or which of two columns or blocks of columns that alternate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Halves {
    /// The first half is the gate, the second the value.
    GateFirst,
    /// The first half is the value, the second the gate, as in `torch.nn.GLU` and Megatron.
    ValueFirst,
}

impl Halves {
    /// The rows of the gate and of the value in a contiguous tensor of `rows` rows and `len` elements.
    pub(crate) fn of(self, len: usize, rows: usize) -> Result<[Rows; 2]> {
        let width = len.checked_div(rows).unwrap_or(0);
        if width * rows != len || !width.is_multiple_of(2) {
            return Err(Error::Halves {
                len: len as u64,
                rows: rows as u64,
            });
        }
        let half = Rows::new(rows, width / 2).pitch(width);
        let halves = [half, half.offset(width / 2)];
        Ok(match self {
            Halves::GateFirst => halves,
            Halves::ValueFirst => [halves[1], halves[0]],
        })
    }
}

/// Columns of gate and value that alternate in blocks in each row of a `[rows, 2·n]` tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interleaving {
    /// The number of columns of a block: 1, or a power of two from 8 to 256.
    pub(crate) block: usize,
    pub(crate) order: Halves,
}

impl Interleaving {
    /// The largest block. The loops of the CPU backend take so many elements at a time.
    pub(crate) const MOST: usize = 256;

    /// The blocks of a gate and a value of `cols` columns each.
    pub(crate) fn new(cols: usize, order: Halves, block: usize) -> Result<Interleaving> {
        let is_known =
            block == 1 || block.is_power_of_two() && (8..=Interleaving::MOST).contains(&block);
        if !is_known || !cols.is_multiple_of(block) {
            return Err(Error::Block {
                block: block as u64,
                cols: cols as u64,
            });
        }
        Ok(Interleaving { block, order })
    }
}

/// The shape of a call. It is the shape of the first tensor that is given as [`Rows`], or one row if there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Shape {
    pub(crate) fn of(len: usize, explicit: &[Option<Rows>]) -> Shape {
        let rows = explicit.iter().flatten().next();
        rows.map_or(Shape { rows: 1, cols: len }, |rows| Shape {
            rows: rows.rows,
            cols: rows.cols,
        })
    }

    /// The shape of a tensor that has gate and value of this shape in its columns.
    pub(crate) fn of_both(self) -> Shape {
        Shape {
            cols: self.cols.saturating_mul(2),
            ..self
        }
    }

    /// The shape of logits: the given one, or else one row for each label.
    pub(crate) fn of_logits(given: Option<Rows>, len: usize, labels: usize) -> Result<Shape> {
        let cols = match given {
            Some(given) => {
                check_length("labels", given.rows, labels)?;
                given.cols
            }
            None => match len.checked_div(labels) {
                Some(cols) => {
                    check_length("logits", cols * labels, len)?;
                    cols
                }
                None => {
                    check_length("logits", 0, len)?;
                    0
                }
            },
        };
        Ok(Shape { rows: labels, cols })
    }

    /// The rows of a tensor of this shape in a buffer of `len` elements: the given ones, or else the whole buffer.
    pub(crate) fn rows_of(
        self,
        what: &'static str,
        len: usize,
        given: Option<Rows>,
    ) -> Result<Rows> {
        let Some(rows) = given else {
            let dense = Rows::new(self.rows, self.cols);
            check_length(what, dense.len().unwrap_or(usize::MAX), len)?;
            return Ok(dense);
        };
        if (rows.rows, rows.cols) != (self.rows, self.cols) {
            return Err(Error::Shape {
                what,
                expected: [self.rows, self.cols].map(|n| n as u64),
                got: [rows.rows, rows.cols].map(|n| n as u64),
            });
        }
        rows.check(what, len)?;
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_what_is_not_two_halves_are_refused() {
        let [gate, value] = Halves::GateFirst.of(12, 2).unwrap();
        assert_eq!((gate, value), (Rows::new(2, 3).pitch(6), gate.offset(3)));
        assert_eq!(Halves::ValueFirst.of(12, 2), Ok([value, gate]));
        // An odd width, a width that is not whole, rows of nothing.
        for (len, rows) in [(10, 2), (13, 2), (4, 0)] {
            let refused = Halves::GateFirst.of(len, rows);
            assert!(matches!(refused, Err(Error::Halves { .. })));
        }
        assert!(Halves::GateFirst.of(0, 0).is_ok() && Halves::ValueFirst.of(0, 3).is_ok());
    }

    /// Compares `check` with the definition: the rows lie inside the buffer and do not overlap.
    #[test]
    fn rows_lie_in_their_buffer_and_apart() {
        for (rows, cols, pitch, group, group_pitch) in [
            (6, 4, 4, None, 0),
            (6, 4, 5, None, 0),
            (6, 4, 4, Some(3), 12),
            (6, 4, 4, Some(3), 20),
            (6, 4, 5, Some(2), 9),
            (6, 4, 5, Some(2), 30),
            (1, 4, 0, None, 0),
            (2, 4, 0, Some(1), 4),
            (0, 4, 0, Some(1), 4),
            (0, 4, 0, None, 0),
        ] {
            let mut given = Rows::new(rows, cols).pitch(pitch).offset(2);
            if let Some(group) = group {
                given = given.groups(group, group_pitch);
            }
            let end = given.ranges().map(|r| r.end).max().unwrap_or(0);
            assert_eq!(given.check("x", end), Ok(()), "{given:?}");
            if end > 0 {
                let refused = given.check("x", end - 1);
                assert!(matches!(refused, Err(Error::Length { .. })), "{given:?}");
            }
            let mut at = 0;
            for range in given.ranges() {
                assert!(range.start >= at);
                at = range.end;
            }
        }
        for rows in [
            Rows::new(2, 4).pitch(3),
            Rows::new(4, 4).pitch(3).groups(2, 100),
        ] {
            let refused = rows.check("x", 1000);
            assert!(matches!(refused, Err(Error::Pitch { .. })), "{rows:?}");
        }
        for rows in [Rows::new(4, 4).groups(2, 7), Rows::new(4, 4).groups(2, 0)] {
            let refused = rows.check("x", 1000);
            assert!(
                matches!(refused, Err(Error::GroupPitch { len: 8, .. })),
                "{rows:?}"
            );
        }
        for rows in [
            Rows::new(4, 4).groups(3, 100),
            Rows::new(4, 4).groups(0, 100),
        ] {
            assert!(matches!(rows.check("x", 1000), Err(Error::Length { .. })));
        }
        for rows in [
            Rows::new(usize::MAX, 4),
            Rows::new(4, 4).groups(2, usize::MAX),
        ] {
            assert!(rows.check("x", 1000).is_err());
        }
    }
}
