//! Documents that are divided among the ranks of a context-parallel group, and what each rank must decide.

use std::ops::Range;

use xact::loss::goldfish::{TokenId, Tokens};
use xact::{Goldfish, Strategy};

use super::inputs::Random;

/// How the text of a group is divided.
#[derive(Clone, Copy, Debug)]
pub struct Division {
    /// The number of ranks.
    pub ranks: usize,
    /// Whether rank r of R has the chunks r and 2R − 1 − r of 2R, instead of chunk r of R.
    pub zig_zag: bool,
    /// Whether each document is divided into chunks of its own, instead of the whole text.
    pub each_document: bool,
    /// The number of halo ids of each chunk.
    pub halo_len: usize,
}

/// What a rank has.
#[derive(Clone, Debug)]
pub struct Share<I> {
    /// The ids of its labels.
    pub ids: Vec<I>,
    /// `[chunks + 1]`: where its chunks begin.
    pub cu_seqlens: Vec<i32>,
    /// `[chunks]`: how many labels of its document precede each chunk.
    pub preceding: Vec<i64>,
    /// `[chunks, halo_len]`.
    pub halo: Vec<I>,
    halo_len: usize,
    /// The document and the positions in it of each chunk.
    chunks: Vec<(usize, Range<usize>)>,
}

/// The positions in a text of `len` tokens that a rank has.
fn divide(division: Division, rank: usize, len: usize) -> Vec<Range<usize>> {
    let Division { ranks, zig_zag, .. } = division;
    let (parts, mine) = if zig_zag {
        (2 * ranks, vec![rank, 2 * ranks - 1 - rank])
    } else {
        (ranks, vec![rank])
    };
    let part = |p: usize| len * p / parts..len * (p + 1) / parts;
    mine.into_iter().map(part).collect()
}

impl<I: TokenId> Share<I> {
    /// The share of a rank of documents. Where fewer ids than the halo has are before a chunk in its document, the halo
    /// begins with the ids `other`.
    pub fn new(
        documents: &[Vec<I>],
        division: Division,
        rank: usize,
        mut other: impl FnMut() -> I,
    ) -> Share<I> {
        let halo_len = division.halo_len;
        let mut chunks = Vec::new();
        if division.each_document {
            for (d, document) in documents.iter().enumerate() {
                let parts = divide(division, rank, document.len());
                chunks.extend(parts.into_iter().map(|part| (d, part)));
            }
        } else {
            let len = documents.iter().map(Vec::len).sum();
            for part in divide(division, rank, len) {
                let mut start = 0;
                for (d, document) in documents.iter().enumerate() {
                    let end = start + document.len();
                    let both = part.start.max(start)..part.end.min(end);
                    if both.start < both.end {
                        chunks.push((d, both.start - start..both.end - start));
                    }
                    start = end;
                }
            }
        }
        let mut share = Share {
            ids: Vec::new(),
            cu_seqlens: vec![0],
            preceding: Vec::new(),
            halo: Vec::new(),
            halo_len,
            chunks,
        };
        for (d, part) in &share.chunks {
            let document = &documents[*d];
            share.ids.extend_from_slice(&document[part.clone()]);
            share.cu_seqlens.push(share.ids.len() as i32);
            share.preceding.push(part.start as i64);
            let before = part.start.min(halo_len);
            share.halo.extend((before..halo_len).map(|_| other()));
            share
                .halo
                .extend_from_slice(&document[part.start - before..part.start]);
        }
        share
    }

    /// The same share without the offsets of a first and a last chunk that begin a document, which no label needs.
    #[must_use]
    pub fn without_needless_offsets(mut self) -> Share<I> {
        if self.preceding.first() == Some(&0) {
            self.cu_seqlens.remove(0);
            self.preceding.remove(0);
            self.halo.drain(..self.halo_len);
        }
        if self.preceding.last() == Some(&0) {
            self.cu_seqlens.pop();
            self.preceding.pop();
            self.halo.truncate(self.halo.len() - self.halo_len);
        }
        self
    }

    /// The tokens of a call.
    pub fn tokens(&self) -> Tokens<'_, I> {
        Tokens::chunks(&self.ids, &self.cu_seqlens, &self.preceding).halo(&self.halo)
    }

    /// The decisions about the share: those about the whole documents, except that a label is kept whose window would begin
    /// before the halo, and that Random counts the labels of the share.
    pub fn expected(&self, goldfish: &Goldfish, documents: &[Vec<I>]) -> Vec<bool> {
        let row = |ids: &[I]| goldfish.keep(&Tokens::row(ids)).expect("a row");
        if let Strategy::Random { .. } = goldfish.strategy() {
            return row(&self.ids);
        }
        let before = goldfish.strategy().h().map_or(0, |h| h as usize - 1);
        let mut keep = Vec::new();
        for (d, part) in &self.chunks {
            let whole = row(&documents[*d]);
            let halo = part.start.min(self.halo_len);
            keep.extend(
                part.clone()
                    .enumerate()
                    .map(|(column, at)| whole[at] || halo + column < before),
            );
        }
        keep
    }
}

/// Documents of these lengths, with few different ids, some of them negative.
pub fn documents(lens: &[usize], random: &mut Random) -> Vec<Vec<i64>> {
    let mut id = || (random.bits() % 50) as i64 - 5;
    lens.iter()
        .map(|&len| (0..len).map(|_| id()).collect())
        .collect()
}

/// The `[s, rows]` tensor whose transposed tensor is given.
pub fn interleave<T: Copy>(transposed: &[T], rows: usize) -> Vec<T> {
    let s = transposed.len() / rows;
    (0..transposed.len())
        .map(|i| transposed[i % rows * s + i / rows])
        .collect()
}
