//! Goldfish masks on the CPU: the decisions of [`Goldfish::keep`] in vector code, on the threads of rayon's current pool.
//!
//! ```
//! use xact::cpu::goldfish::{self, Counts};
//! use xact::{Goldfish, Strategy, Tokens};
//!
//! let labels: Vec<i32> = (0..1000).map(|i| i * i % 1009).collect();
//! let strategy = Goldfish::new(Strategy::Hash64 { k: 4, h: 13, seed: 0 })?;
//! let mut weights = [0.0; 1000];
//! let counts = goldfish::mask(&strategy, Tokens::row(&labels)).weights(&mut weights).run()?;
//! assert_eq!((counts.kept, counts.dropped), (734, 266));
//! # Ok::<(), xact::Error>(())
//! ```

use super::simd::{InstructionSet, Task};
use crate::error::{Result, check_length};
use crate::loss::goldfish::{
    Goldfish, Segment, Segments, SplitMix, Strategy, TABLE_LEN, TokenId, Tokens, WEYL, avalanche,
    avalanche_cut, cut64, mix,
};

/// The numbers of kept and dropped labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// The number of kept labels.
    pub kept: u64,
    /// The number of dropped labels.
    pub dropped: u64,
}

/// Returns a call that decides for every label whether it is kept. The decisions equal those of [`Goldfish::keep`]. The
/// methods of the call set the outputs.
pub fn mask<'a, I: TokenId>(goldfish: &'a Goldfish, tokens: Tokens<'a, I>) -> Mask<'a, I> {
    Mask {
        goldfish,
        tokens,
        keep: None,
        weights: None,
    }
}

/// A call of [`mask`].
#[derive(Debug)]
#[must_use = "nothing is decided until `run`"]
pub struct Mask<'a, I> {
    goldfish: &'a Goldfish,
    tokens: Tokens<'a, I>,
    keep: Option<&'a mut [u8]>,
    weights: Option<&'a mut [f32]>,
}

impl<'a, I: TokenId> Mask<'a, I> {
    /// Sets an output for the decisions, `[N] u8`: 1 for kept, 0 for dropped.
    pub fn keep(mut self, keep: &'a mut [u8]) -> Self {
        self.keep = Some(keep);
        self
    }

    /// Sets an output for the decisions as weights of a loss, `[N] f32`: 1 for kept, 0 for dropped.
    pub fn weights(mut self, weights: &'a mut [f32]) -> Self {
        self.weights = Some(weights);
        self
    }

    /// Writes the outputs, and returns the numbers of kept and dropped labels.
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) if an output does not have one element for each label, and the errors of
    /// [`Goldfish::keep`].
    ///
    /// Nothing is written when a call fails.
    pub fn run(self) -> Result<Counts> {
        let Mask {
            goldfish,
            tokens,
            keep: out,
            weights,
        } = self;
        let n = tokens.hash_ids.len();
        check_length("keep", n, out.as_ref().map_or(n, |out| out.len()))?;
        check_length("weights", n, weights.as_ref().map_or(n, |out| out.len()))?;
        let keep = keep(goldfish, &tokens)?;
        for (out, &keep) in out.into_iter().flatten().zip(&keep) {
            *out = keep.into();
        }
        for (weight, &keep) in weights.into_iter().flatten().zip(&keep) {
            *weight = keep.into();
        }
        let kept = keep.iter().filter(|&&keep| keep).count() as u64;
        Ok(Counts {
            kept,
            dropped: n as u64 - kept,
        })
    }
}

/// The number of labels that a thread takes at a time.
const CHUNK: usize = 1 << 12;

/// The number of labels from which several threads are used. A label takes some nanoseconds, and handing work to another
/// thread 12 µs.
#[cfg(feature = "rayon")]
const PARALLEL_FROM: usize = 4 * CHUNK;

/// Whether each label is kept.
pub(super) fn keep<I: TokenId>(goldfish: &Goldfish, tokens: &Tokens<'_, I>) -> Result<Vec<bool>> {
    let segments = Segments::new(tokens)?;
    if tokens.interleaved == 1 {
        return Ok(keep_in_order(goldfish, tokens, &segments));
    }
    let indices = (0..tokens.hash_ids.len()).map(|number| tokens.index(number));
    let ids: Vec<I> = indices.clone().map(|i| tokens.hash_ids[i]).collect();
    let mut in_order = *tokens;
    (in_order.hash_ids, in_order.interleaved) = (&ids, 1);
    let mut keep = vec![true; ids.len()];
    for (i, kept) in indices.zip(keep_in_order(goldfish, &in_order, &segments)) {
        keep[i] = kept;
    }
    Ok(keep)
}

/// Whether each label is kept, where no rows are interleaved.
fn keep_in_order<I: TokenId>(
    goldfish: &Goldfish,
    tokens: &Tokens<'_, I>,
    segments: &Segments<'_>,
) -> Vec<bool> {
    let decision = Decision::new(goldfish, segments);
    let set = InstructionSet::current();
    let before = decision.terms.len().saturating_sub(1);
    let mut keep = vec![true; tokens.hash_ids.len()];
    for_chunks(segments, &mut keep, &|segment, first, keep| {
        let ids = &tokens.hash_ids[segment.labels.clone()];
        let halo = &tokens.halo[segment.halo.clone()];
        // The ids that the window of the first label needs, with 0 for those that do not exist.
        let of_halo = before.saturating_sub(first).min(halo.len());
        let missing = before.saturating_sub(first + of_halo);
        let present = halo[halo.len() - of_halo..]
            .iter()
            .chain(&ids[first.saturating_sub(before)..first + keep.len()]);
        let mut windows = vec![0; missing];
        windows.extend(present.map(|&id| Into::<i64>::into(id) as u64));
        windows.resize(before + keep.len().next_multiple_of(LANES), 0);
        decision.decide(set, segment, first, &windows, keep);
        for (keep, &id) in keep.iter_mut().zip(&ids[first..]) {
            *keep = *keep || tokens.exempt.contains(&id.into());
        }
    });
    keep
}

/// Calls `work` with the segment and the first column of every part of a segment, and the decisions about it, on the threads
/// of rayon's current pool where there are enough labels. Not generic, so that rayon's machinery is compiled here.
fn for_chunks(
    segments: &Segments<'_>,
    keep: &mut [bool],
    work: &(dyn Fn(&Segment, usize, &mut [bool]) + Sync),
) {
    #[cfg(feature = "rayon")]
    let labels = keep.len();
    let mut rest = keep;
    let parts = segments.iter().flat_map(|segment| {
        let (keep, after) = std::mem::take(&mut rest).split_at_mut(segment.labels.len());
        rest = after;
        let parts = keep.chunks_mut(CHUNK).enumerate();
        parts.map(move |(part, keep)| (segment.clone(), part * CHUNK, keep))
    });
    #[cfg(feature = "rayon")]
    if labels >= PARALLEL_FROM {
        use rayon::prelude::*;
        let parts: Vec<_> = parts.collect();
        return parts
            .into_par_iter()
            .for_each(|(segment, first, keep)| work(&segment, first, keep));
    }
    parts.for_each(|(segment, first, keep)| work(&segment, first, keep));
}

/// The number of labels whose keys are computed at once: four registers of u64 in the widest instruction set.
const LANES: usize = 32;

/// The strategy, prepared for the loops. It does not depend on the type of the ids, so that the loops are compiled in this
/// crate.
struct Decision<'a> {
    strategy: Strategy,
    /// The addend or factor for each id of a window, that of the label's own id first; zeros for the product strategies.
    /// Empty if no label has a complete window.
    terms: Vec<u64>,
    /// A bit for each entry of the table.
    bitmap: &'a [u32],
    segments: &'a Segments<'a>,
}

impl<'a> Decision<'a> {
    fn new(goldfish: &'a Goldfish, segments: &'a Segments<'a>) -> Decision<'a> {
        let strategy = goldfish.strategy();
        let h = strategy.h().map_or(0, |h| h as usize);
        let terms = match strategy {
            // No window is complete, and h may be larger than the memory.
            _ if h > segments.longest() => Vec::new(),
            Strategy::Hash64 { seed, .. } => SplitMix(mix(seed)).take(h).collect(),
            Strategy::DotTable { .. } => {
                let coefficients = goldfish.coefficients().unwrap_or_default();
                coefficients.iter().rev().map(|&c| c as u64).collect()
            }
            _ => vec![0; h],
        };
        Decision {
            strategy,
            terms,
            bitmap: goldfish.bitmap_words().unwrap_or_default(),
            segments,
        }
    }

    /// Decides about the labels from column `first` of a segment on, which are all marked as kept. `ids` has the ids of all
    /// their windows.
    fn decide(
        &self,
        set: InstructionSet,
        segment: &Segment,
        first: usize,
        ids: &[u64],
        keep: &mut [bool],
    ) {
        let cu_seqlens = self.segments.documents();
        // The number of labels before this one in its document, if there are documents.
        let mut next = 0;
        let mut in_document = |column: usize| {
            while cu_seqlens
                .get(next)
                .is_some_and(|&s| i64::from(s) <= column as i64)
            {
                next += 1;
            }
            let start = cu_seqlens[..next].last()?;
            Some((column as i64 - i64::from(*start)) as u64)
        };
        let columns = first..;
        match self.strategy {
            Strategy::Static { k, start } => {
                for (keep, column) in keep.iter_mut().zip(columns) {
                    let position = in_document(column).unwrap_or(segment.preceding + column as u64);
                    let after = position.checked_sub(start);
                    *keep = !after.is_some_and(|after| after.is_multiple_of(k.into()));
                }
            }
            Strategy::Random { k, seed } => {
                let (state, cut) = (mix(seed), cut64(k));
                for (keep, column) in keep.iter_mut().zip(columns) {
                    let number = (segment.labels.start + column) as u64 + 1;
                    *keep = mix(state.wrapping_add(number.wrapping_mul(WEYL))) >= cut;
                }
            }
            _ if self.terms.is_empty() => {}
            _ => {
                set.run(Windows {
                    decision: self,
                    ids,
                    keep,
                });
                for (keep, column) in keep.iter_mut().zip(columns) {
                    let previous = (column + segment.halo.len()) as u64;
                    let previous = in_document(column).map_or(previous, |p| p.min(previous));
                    let previous = match self.segments.in_row(segment.labels.start + column) {
                        Some(of_row) if of_row < column => previous.min(of_row as u64),
                        _ => previous,
                    };
                    *keep |= previous + 1 < self.terms.len() as u64;
                }
            }
        }
    }
}

/// Decides about labels by their windows, as if all windows were complete.
struct Windows<'a> {
    decision: &'a Decision<'a>,
    ids: &'a [u64],
    keep: &'a mut [bool],
}

impl Windows<'_> {
    /// Keeps a label if `keeps` returns true for its key. `join` adds an id to the key, starting with the label's own id.
    #[inline(always)]
    fn each(self, empty: u64, join: impl Fn(u64, u64, u64) -> u64, keeps: impl Fn(u64) -> bool) {
        let Windows {
            decision,
            ids,
            keep,
        } = self;
        let before = decision.terms.len() - 1;
        for (group, keep) in keep.chunks_mut(LANES).enumerate() {
            let mut keys = [empty; LANES];
            for (distance, &term) in decision.terms.iter().enumerate() {
                let ids = &ids[group * LANES + before - distance..][..LANES];
                for (key, &id) in keys.iter_mut().zip(ids) {
                    *key = join(*key, id, term);
                }
            }
            let mut kept = [false; LANES];
            for (kept, key) in kept.iter_mut().zip(keys) {
                *kept = keeps(key);
            }
            keep.copy_from_slice(&kept[..keep.len()]);
        }
    }
}

impl Task for Windows<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let bitmap = self.decision.bitmap;
        let by_table = |key: u64| {
            let entry = (key as i64).rem_euclid(TABLE_LEN as i64) as usize;
            bitmap[entry / 32] >> (entry % 32) & 1 == 0
        };
        let product = |key: u64, id: u64, _| key.wrapping_mul(id);
        match self.decision.strategy {
            // They have no windows.
            Strategy::Static { .. } | Strategy::Random { .. } => {}
            Strategy::ProductTable { .. } => self.each(1, product, by_table),
            Strategy::ProductAvalanche { k, .. } => {
                let cut = avalanche_cut(k);
                self.each(1, product, |key| avalanche(key) >= cut);
            }
            Strategy::DotTable { .. } => {
                let dot = |key: u64, id: u64, c| key.wrapping_add(id.wrapping_mul(c));
                self.each(0, dot, by_table);
            }
            Strategy::Hash64 { k, .. } => {
                let cut = cut64(k);
                let sum =
                    |key: u64, id: u64, offset| key.wrapping_add(mix(id.wrapping_add(offset)));
                self.each(0, sum, |key| mix(key) >= cut);
            }
        }
    }
}
