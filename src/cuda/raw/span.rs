//! [`Span`]: the bytes that a buffer covers, for the check of overlaps.

use crate::error::{Error, Result};

/// The bytes of a buffer: `rows` rows of `row_bytes` bytes, `pitch_bytes` apart.
pub(super) struct Span {
    what: &'static str,
    start: u64,
    rows: u64,
    row_bytes: u64,
    pitch_bytes: u64,
    /// One past the last byte.
    end: u64,
}

impl Span {
    pub(super) fn new(
        what: &'static str,
        start: u64,
        rows: u64,
        cols: u64,
        pitch: u64,
        element: u64,
    ) -> Result<Span> {
        let empty = rows == 0 || cols == 0;
        if start == 0 && !empty {
            return Err(Error::Null { what });
        }
        if !start.is_multiple_of(element) {
            return Err(Error::Misaligned {
                what,
                address: start,
                alignment: element,
            });
        }
        let too_large = || Error::TooLarge { rows, cols };
        let row_bytes = cols.checked_mul(element).ok_or_else(too_large)?;
        // The pitch of a single row is never used.
        let pitch = if rows > 1 { pitch } else { cols };
        let pitch_bytes = pitch.checked_mul(element).ok_or_else(too_large)?;
        let end = if empty {
            start
        } else {
            (rows - 1)
                .checked_mul(pitch_bytes)
                .and_then(|b| b.checked_add(row_bytes))
                .and_then(|b| b.checked_add(start))
                .ok_or_else(too_large)?
        };
        Ok(Span {
            what,
            start,
            rows,
            row_bytes,
            pitch_bytes,
            end,
        })
    }

    /// Whether this is the buffer of that name.
    pub(super) fn is(&self, what: &str) -> bool {
        self.what == what
    }

    /// Whether `self` and `other` share bytes, or may share bytes.
    fn overlaps(&self, other: &Span) -> bool {
        if self.start == self.end || other.start == other.end {
            return false;
        }
        if self.end <= other.start || other.end <= self.start {
            return false;
        }
        // Columns of one larger matrix, such as the gate and value halves: the rows interleave. (With
        // equal pitches the distance modulo the pitch is the same for every pair of rows.)
        if self.rows > 1 && other.rows > 1 && self.pitch_bytes == other.pitch_bytes {
            let pitch = self.pitch_bytes;
            let ahead = (i128::from(other.start) - i128::from(self.start))
                .rem_euclid(i128::from(pitch)) as u64;
            return ahead < self.row_bytes || ahead > pitch - other.row_bytes;
        }
        true
    }

    pub(super) fn disjoint_from(&self, other: &Span) -> Result<()> {
        if self.overlaps(other) {
            return Err(Error::Overlap {
                output: self.what,
                other: other.what,
            });
        }
        Ok(())
    }

    /// Fails unless the output `self` is exactly `input`, or does not overlap it. In place is safe because the thread that
    /// writes an element has read it before.
    pub(super) fn may_be(&self, input: &Span) -> Result<()> {
        if self.start == input.start && self.pitch_bytes == input.pitch_bytes {
            return Ok(());
        }
        self.disjoint_from(input)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: u64, rows: u64, cols: u64, pitch: u64) -> Span {
        Span::new("span", start, rows, cols, pitch, 2).unwrap()
    }

    /// Against the definition: two matrices overlap if they share a byte. Exact where both have rows of
    /// the same pitch; otherwise matrices whose ranges (first to last byte) meet count as overlapping,
    /// though one may lie in the gaps of the other.
    #[test]
    fn overlap_is_never_missed_and_halves_are_apart() {
        let bytes = |s: &Span| {
            (0..s.rows)
                .flat_map(|r| (0..s.row_bytes).map(move |b| s.start + r * s.pitch_bytes + b))
                .collect::<std::collections::HashSet<_>>()
        };
        let shapes = [
            (1, 8, 8),
            (3, 4, 8),
            (2, 3, 9),
            (4, 2, 8),
            (3, 6, 8),
            (2, 8, 8),
            (0, 4, 8),
        ];
        let (mut interleaved, mut conservative) = (0, 0);
        for start in 0..60 {
            for (rows, cols, pitch) in shapes {
                for (rows2, cols2, pitch2) in
                    [(3, 4, 8), (1, 5, 5), (2, 4, 8), (3, 2, 7), (4, 7, 8)]
                {
                    let a = span(16 + 2 * start, rows, cols, pitch);
                    let b = span(64, rows2, cols2, pitch2);
                    let share = !bytes(&a).is_disjoint(&bytes(&b));
                    let meet = rows > 0 && a.start < b.end && b.start < a.end;
                    let exact = rows > 1 && rows2 > 1 && pitch == pitch2;
                    let expected = if exact { share } else { meet };
                    let pair = (start, (rows, cols, pitch), (rows2, cols2, pitch2));
                    assert_eq!(a.overlaps(&b), expected, "{pair:?}");
                    assert_eq!(b.overlaps(&a), expected, "{pair:?}");
                    assert!(expected || !share, "{pair:?}");
                    interleaved += u32::from(meet && !expected);
                    conservative += u32::from(expected && !share);
                }
            }
        }
        assert!(interleaved > 0 && conservative > 0, "both kinds were tried");
        let (gate, value) = (span(1024, 5, 100, 200), span(1024 + 200, 5, 100, 200));
        assert!(!gate.overlaps(&value) && !value.overlaps(&gate));
        assert!(gate.overlaps(&span(1024 + 198, 5, 100, 200)));
    }

    #[test]
    fn spans_that_do_not_fit_are_refused() {
        assert!(Span::new("x", 16, u64::MAX, 2, u64::MAX, 2).is_err());
        assert!(Span::new("x", u64::MAX - 1, 1, 4, 4, 2).is_err());
        assert_eq!(
            Span::new("x", 0, 1, 4, 4, 2).err(),
            Some(Error::Null { what: "x" })
        );
        assert!(Span::new("x", 0, 1, 0, 0, 2).is_ok());
        assert!(matches!(
            Span::new("x", 3, 1, 4, 4, 2),
            Err(Error::Misaligned { .. })
        ));
    }
}
