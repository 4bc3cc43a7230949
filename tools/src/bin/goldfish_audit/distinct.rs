//! Counts distinct numbers in bounded memory.

use std::collections::HashSet;

/// The count is exact up to this number.
pub const EXACT: usize = 1 << 18;

/// Wegman's adaptive sampling (Flajolet, "On Adaptive Sampling", Computing 43, 1990). It keeps the numbers whose hash ends
/// with a certain number of zeros, such that at most [`EXACT`] remain. The standard error is 1.2/√EXACT, 0.23 %.
pub struct Distinct {
    kept: HashSet<u64>,
    zeros: u32,
}

impl Distinct {
    pub fn new() -> Distinct {
        Distinct {
            kept: HashSet::new(),
            zeros: 0,
        }
    }

    /// Adds a number that looks random; equal numbers count once.
    pub fn add(&mut self, hash: u64) {
        if hash.trailing_zeros() < self.zeros || !self.kept.insert(hash) {
            return;
        }
        while self.kept.len() > EXACT {
            self.zeros += 1;
            let zeros = self.zeros;
            self.kept.retain(|hash| hash.trailing_zeros() >= zeros);
        }
    }

    pub fn estimate(&self) -> f64 {
        self.kept.len() as f64 * 2f64.powi(self.zeros as i32)
    }
}
