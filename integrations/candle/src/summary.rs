//! The totals of a loss. They stay on the device until they are read.

use candle_core::{DType, Result, Tensor};
use xact::CrossEntropySummary;

/// The number of u32 words of a [`CrossEntropySummary`]: six f32 and six u64.
pub(crate) const WORDS: usize = size_of::<CrossEntropySummary>() / 4;

/// The totals of a call of [`cross_entropy`](crate::cross_entropy()), on the device of the logits.
#[derive(Clone, Debug)]
pub struct Summary(pub(crate) Tensor);

impl Summary {
    /// Copies the totals to the host. This waits for the device. No other function of this crate does that, except the
    /// constructors of [`nn`](crate::nn).
    ///
    /// # Errors
    /// The errors of candle's copy.
    pub fn read(&self) -> Result<CrossEntropySummary> {
        Ok(from_words(&self.0.to_vec1::<u32>()?))
    }

    /// The totals as `[18] u32`: the bytes of a [`CrossEntropySummary`], still on the device.
    pub fn words(&self) -> &Tensor {
        debug_assert_eq!(self.0.dtype(), DType::U32);
        &self.0
    }
}

/// Converts the totals to the words that a kernel writes.
pub(crate) fn to_words(summary: &CrossEntropySummary) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    let floats = [
        summary.loss,
        summary.mean,
        summary.z_loss,
        summary.weight,
        summary.normalizer,
        summary.dropped_loss,
    ];
    let counts = [
        summary.labels,
        summary.kept,
        summary.dropped,
        summary.correct,
        summary.bad_row,
        summary.nan_row,
    ];
    let (first, last) = words.split_at_mut(floats.len());
    for (word, float) in first.iter_mut().zip(floats) {
        *word = float.to_bits();
    }
    for (pair, count) in last.chunks_exact_mut(2).zip(counts) {
        let bytes = count.to_ne_bytes();
        for (word, bytes) in pair.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
    }
    words
}

fn from_words(words: &[u32]) -> CrossEntropySummary {
    let float = |i: usize| f32::from_bits(words[i]);
    let count = |i: usize| {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&words[6 + 2 * i].to_ne_bytes());
        bytes[4..].copy_from_slice(&words[7 + 2 * i].to_ne_bytes());
        u64::from_ne_bytes(bytes)
    };
    let mut summary = CrossEntropySummary::default();
    summary.loss = float(0);
    summary.mean = float(1);
    summary.z_loss = float(2);
    summary.weight = float(3);
    summary.normalizer = float(4);
    summary.dropped_loss = float(5);
    summary.labels = count(0);
    summary.kept = count(1);
    summary.dropped = count(2);
    summary.correct = count(3);
    summary.bad_row = count(4);
    summary.nan_row = count(5);
    summary
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn the_words_are_those_of_the_struct() {
        let mut summary = CrossEntropySummary::default();
        (summary.loss, summary.mean, summary.z_loss) = (1.5, -2.5, 3.5);
        (summary.weight, summary.normalizer, summary.dropped_loss) = (4.5, 5.5, f32::NAN);
        (summary.labels, summary.kept, summary.dropped) = (1, 2 << 40, 3);
        (summary.correct, summary.bad_row, summary.nan_row) = (4, u64::MAX, 6);
        let words = to_words(&summary);
        let back = from_words(&words);
        assert_eq!(to_words(&back), words);
        assert_eq!((back.mean, back.kept, back.nan_row), (-2.5, 2 << 40, 6));
        // Kernels write the struct itself.
        assert_eq!(size_of::<CrossEntropySummary>(), 72);
        assert_eq!(offset_of!(CrossEntropySummary, mean), 4);
        assert_eq!(offset_of!(CrossEntropySummary, normalizer), 16);
        assert_eq!(offset_of!(CrossEntropySummary, labels), 24);
        assert_eq!(offset_of!(CrossEntropySummary, kept), 32);
        assert_eq!(offset_of!(CrossEntropySummary, nan_row), 64);
    }
}
