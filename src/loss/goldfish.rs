//! Goldfish: a share of the labels is left out of the loss (**dropped**). Which labels are dropped is a function of the
//! text, so that the model never trains on a whole passage, however often the passage is repeated. Source: Hans et al.,
//! "Be like a Goldfish, Don't Memorize!", [arXiv 2406.10209](https://arxiv.org/abs/2406.10209).
//!
//! A [`Strategy`] decides from the **window** of a label: the `h` ids that end with the id of the label. (The text of the
//! paper uses the ids before the label; every released implementation includes it.) Labels are already shifted: label `s`
//! belongs to row `s` of the logits.
//!
//! - A label whose window would begin before its segment (with its halo) or its document is **never dropped**. A segment
//!   shorter than `h` is kept whole. (The official code raises an error.)
//! - The `hash_ids` may differ from the labels: give the true ids even where a label is ignored. Any value is legal, also
//!   a negative one. Ids of a narrower type decide like the same numbers in i64.
//! - A **segment** is a row of `len` labels, or all labels where offsets divide them into **documents**, or a **chunk**: a
//!   part of a document, whose other labels are elsewhere. No window crosses a document or segment boundary. The official
//!   masks have rows only.
//! - A **halo** is a number of ids that precede the first label of each segment and have no label in the call. A
//!   context-parallel rank gets them from its neighbours. With `h − 1` halo ids, the strategies that hash decide as on the
//!   whole row or document. [`Random`](Strategy::Random) and [`Static`](Strategy::Static) do not use ids, so a halo does
//!   not change them: `Random` counts the labels of the call, and `Static` counts those of the segment, unless the layout
//!   says how many labels of the document are before the segment ([`Documents`](Layout::Documents) for the first one,
//!   [`Chunks`](Layout::Chunks) for each).
//! - A rank that holds several parts of a document, as two chunks in zig-zag order, gives each of them as a chunk with a
//!   halo of its own. Where the text of a chunk begins a document, that document is a chunk too.
//! - Rows of text may be **interleaved**, as the columns of `[s, b]` tensors: [`Tokens::interleaved`].
//! - **Exempt** ids, such as the special tokens of a tokenizer, are never dropped. They are still part of the windows of
//!   other labels.
//!
//! The arithmetic is integer, so the CPU and every device give the same decisions. [`Goldfish::keep`] is the reference:
//!
//! ```
//! use xact::loss::goldfish::Tokens;
//! use xact::{Goldfish, Strategy};
//!
//! let labels: Vec<i64> = (0..1000).map(|i| i * i % 1009).collect();
//! let goldfish = Goldfish::new(Strategy::Hash64 { k: 4, h: 13, seed: 0 })?;
//! let keep = goldfish.keep(&Tokens::row(&labels))?;
//! assert_eq!(keep.iter().filter(|&&keep| !keep).count(), 266);
//! # Ok::<(), xact::Error>(())
//! ```
//!
//! # Hash64
//!
//! Hash64 is the strategy of this crate. All numbers are u64, and arithmetic wraps. `mix` is the finaliser of SplitMix64,
//! and `split(s, n)` is output number `n` (from 0) of the generator that starts in state `s`:
//!
//! ```text
//! mix(z):       z = (z xor z >> 30) · 0xbf58476d1ce4e5b9
//!               z = (z xor z >> 27) · 0x94d049bb133111eb
//!               return z xor z >> 31
//! split(s, n):  return mix(s + (n + 1) · 0x9e3779b97f4a7c15)
//!
//! key   = Σ mix(id[s − j] + split(mix(seed), j))    over j = 0 … h − 1
//! drop  = floor(mix(key) · k / 2⁶⁴) == 0            the product in 128 bits
//! ```
//!
//! Each id is mixed with its distance from the label before the sum, so the key depends on the order and on every id, and
//! equal ids at different places do not cancel. Additions commute, so the threads of a warp can share a window.
//!
//! Test values for `seed = 0`: the key of the ids 1, 2, 3, 4 (the label last) at `h = 4` is `0x26fa361bfc0aafac`, and the
//! key of the single id 0 at `h = 1` is `0x48218226ff3cd4bf`.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::blocks::{self, GoldfishArgs};
use crate::dtype::Portable;
use crate::error::{Error, Result, check_length};

mod mt19937;

use mt19937::Mt19937;

/// How Goldfish decides which labels are dropped. About one label in `k` is dropped, with `k ≥ 2`. The strategies that hash
/// use windows of `h ≥ 1` ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// Drops the labels `start`, `start + k`, `start + 2k`, … of each row, or of each document where there are offsets.
    /// The decision depends on how documents are packed into rows. This is the baseline of the paper (`static` of the
    /// official code).
    Static {
        /// The period: one label in k is dropped.
        k: u32,
        /// The index of the first label that is dropped.
        start: u64,
    },
    /// Drops labels at random, independently of the text. Label number `i` of the call, counted over all rows, is
    /// dropped if `floor(split(mix(seed), i) · k / 2⁶⁴) == 0`, with the functions of [`Hash64`](self#hash64). Use another
    /// seed for each call. (The official `seeded_random` is meant to do this but drops whole rows: goldfish-loss issue #3.)
    Random {
        /// One label in k is dropped on average.
        k: u32,
        /// The seed, any number.
        seed: u64,
    },
    /// The product of the window's ids modulo 1,000,003 selects an entry of a table of random numbers. The label is dropped
    /// if that entry is below 1/k. This reproduces, bit for bit, `hash-table` of the official code
    /// ([`apply_goldfish`](https://github.com/ahans30/goldfish-loss/blob/35d29f96553462f6c30417f8065225aa6b89e172/lit_gpt/utils.py))
    /// with the table that PyTorch draws on a CPU, and Apertus v1
    /// ([swiss-ai/Megatron-LM](https://github.com/swiss-ai/Megatron-LM/blob/81d44dbe25c22190989fa8a12284bdb8d1303b40/megatron/core/datasets/gpt_dataset.py)).
    ///
    /// The product is kept modulo 2⁶⁴ and gains a factor of 2 with every even id, so at `h = 50` it is 0 for a tenth of all
    /// windows or more. Use it up to about `h = 24`, or to match an earlier training. The product does not depend on the
    /// order of ids or on an id 1, and an id 0 makes it 0.
    ProductTable {
        /// About one label in k is dropped.
        k: u32,
        /// The number of ids in a window: 13 in the paper, 50 in Apertus v1.
        h: u32,
    },
    /// The same product, hashed to 32 bits that are compared with (2³² − 1)/k in f32. This is `hash-avalanche` of the
    /// official code (`hashint`). The hash uses only the lower 32 bits of the product. With random ids they are all 0 for
    /// 0.2 % of the windows at `h = 13`, for 14 % at 24 and for half of them at 32.
    ProductAvalanche {
        /// About one label in k is dropped.
        k: u32,
        /// The number of ids in a window.
        h: u32,
    },
    /// Like `ProductTable`, but with a weighted sum of the window's ids instead of their product. Each place in the window
    /// has a coefficient, and the table is the same. This reproduces, bit for bit, the successor of Apertus v1's code in
    /// [swiss-ai/Megatron-LM-MoE](https://github.com/swiss-ai/Megatron-LM-MoE/blob/3234a2a880866d071b21d0d6a77e4dd2c131536c/megatron/core/datasets/goldfish.py).
    DotTable {
        /// About one label in k is dropped.
        k: u32,
        /// The number of ids in a window: 50 in that code.
        h: u32,
    },
    /// A 64-bit hash of the window that depends on every id and its place ([definition](self#hash64)). One key in k is
    /// dropped. Use this strategy unless you must match one of the others.
    Hash64 {
        /// One label in k is dropped on average.
        k: u32,
        /// The number of ids in a window.
        h: u32,
        /// The seed, any number. Another seed drops other labels.
        seed: u64,
    },
}

impl Strategy {
    /// Returns the name of the strategy: `static`, `random`, `product-table`, `product-avalanche`, `dot-table` or
    /// `hash64`.
    pub const fn name(&self) -> &'static str {
        match self {
            Strategy::Static { .. } => "static",
            Strategy::Random { .. } => "random",
            Strategy::ProductTable { .. } => "product-table",
            Strategy::ProductAvalanche { .. } => "product-avalanche",
            Strategy::DotTable { .. } => "dot-table",
            Strategy::Hash64 { .. } => "hash64",
        }
    }

    /// Returns k: about one label in k is dropped.
    pub const fn k(&self) -> u32 {
        match *self {
            Strategy::Static { k, .. }
            | Strategy::Random { k, .. }
            | Strategy::ProductTable { k, .. }
            | Strategy::ProductAvalanche { k, .. }
            | Strategy::DotTable { k, .. }
            | Strategy::Hash64 { k, .. } => k,
        }
    }

    /// Returns the number of ids in a window; `None` for strategies that do not use ids.
    pub const fn h(&self) -> Option<u32> {
        match *self {
            Strategy::Static { .. } | Strategy::Random { .. } => None,
            Strategy::ProductTable { h, .. }
            | Strategy::ProductAvalanche { h, .. }
            | Strategy::DotTable { h, .. }
            | Strategy::Hash64 { h, .. } => Some(h),
        }
    }

    const fn has_table(&self) -> bool {
        matches!(
            self,
            Strategy::ProductTable { .. } | Strategy::DotTable { .. }
        )
    }

    fn check(&self) -> Result<()> {
        let at_least = |what, least: u32, got: u32, range| {
            if got < least {
                return Err(Error::OutOfRange {
                    what,
                    got: got.into(),
                    range,
                });
            }
            Ok(())
        };
        at_least("k", 2, self.k(), "[2, 2^32)")?;
        self.h()
            .map_or(Ok(()), |h| at_least("h", 1, h, "[1, 2^32)"))
    }
}

/// The number of entries of a table, 1,000,003 (a prime): `TABLE_SIZE` of the official code.
pub const TABLE_LEN: usize = blocks::GOLDFISH_TABLE_LEN as usize;

/// The seed of the tables and, with h added, of the coefficients: the 47th Fibonacci number, a prime.
const SEED: u32 = 2_971_215_073;

/// Returns the table of the official code as PyTorch draws it on a CPU: `torch.rand(1_000_003)` from a generator with the
/// seed 2971215073, uniform multiples of 2⁻²⁴ in [0, 1). The SHA-256 of its little-endian bytes is
/// 33025be4fa64d02d0a2e630dfa7fc166bf76a5364206fe4cd8973ce46e836562.
///
/// On a GPU, PyTorch draws another table, which depends on the GPU model; see [`Goldfish::with_table`].
pub fn table() -> Vec<f32> {
    const UNIT: f32 = 1.0 / (1 << 24) as f32;
    table24().map(|v| v as f32 * UNIT).collect()
}

/// The table in units of 2⁻²⁴.
fn table24() -> impl Iterator<Item = u32> {
    let mut generator = Mt19937::new(SEED);
    (0..TABLE_LEN).map(move |_| generator.next_u32() & 0xff_ffff)
}

/// Returns the h coefficients of [`Strategy::DotTable`], that of the oldest id first. They are odd numbers below 2⁶², as
/// PyTorch's CPU generator draws them from the seed 2971215073 + h.
pub fn coefficients(h: u32) -> Vec<i64> {
    // PyTorch keeps the lower 32 bits of a seed.
    let mut generator = Mt19937::new(SEED.wrapping_add(h));
    let mut draw = || {
        let high = u64::from(generator.next_u32());
        let bits = high << 32 | u64::from(generator.next_u32());
        (bits & ((1 << 62) - 1) | 1) as i64
    };
    (0..h).map(|_| draw()).collect()
}

/// Packs bits into words, from the lowest bit on.
fn pack(bits: impl IntoIterator<Item = bool>) -> Arc<[u32]> {
    let mut words = vec![0; TABLE_LEN.div_ceil(32)];
    for (i, bit) in bits.into_iter().enumerate() {
        words[i / 32] |= u32::from(bit) << (i % 32);
    }
    words.into()
}

/// A checked strategy with the table and the coefficients that it needs. It is cheap to clone.
#[derive(Clone)]
pub struct Goldfish {
    strategy: Strategy,
    /// For the strategies with a table, a bit for each entry; a 1 drops the label.
    bitmap: Option<Arc<[u32]>>,
    /// For `DotTable`.
    coefficients: Option<Arc<[i64]>>,
}

impl fmt::Debug for Goldfish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Goldfish")
            .field("strategy", &self.strategy)
            .finish_non_exhaustive()
    }
}

/// An integer type of token ids: [`u8`], [`u16`], [`u32`], [`i32`] or [`i64`]. The trait is sealed.
pub trait TokenId: Copy + Into<i64> + fmt::Debug + Portable + Send + Sync + sealed::Sealed {}

mod sealed {
    pub trait Sealed {
        #[allow(dead_code)] // without `cuda`
        const SIGNED: bool;
    }

    macro_rules! token_ids {
        ($($I:ident),*) => {$(
            impl Sealed for $I {
                const SIGNED: bool = $I::MIN != 0;
            }
            impl super::TokenId for $I {}
        )*};
    }
    token_ids!(u8, u16, u32, i32, i64);
}

/// How labels are divided into segments and documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout<'a> {
    /// Each segment is a row of `len` labels.
    Rows {
        /// The number of labels of a row, which divides the number of labels.
        len: usize,
    },
    /// All labels are one segment, which has documents: document d begins at label `cu_seqlens[d]` and ends before label
    /// `cu_seqlens[d + 1]`. Labels before the first offset, and labels from the last offset on, are documents too. If the
    /// first document began n labels before the segment, the first offset is −n, and the halo has the last ids of that
    /// part.
    Documents {
        /// The offsets, which must not decrease.
        cu_seqlens: &'a [i32],
    },
    /// Each segment is a chunk: labels of one document that are contiguous in its text. Chunk c begins at label
    /// `cu_seqlens[c]` and ends before label `cu_seqlens[c + 1]`. Its document began `preceding[c]` labels before it, and 0
    /// says that the document begins with the chunk. The chunks may be in any order, and of any documents.
    ///
    /// Of the halo of a chunk, the last `min(n, preceding[c])` ids are used. Labels before the first offset, and labels from
    /// the last offset on, are chunks without a halo that begin a document. [`Strategy::Static`] counts from the start of
    /// the document. [`Strategy::Random`] counts the labels of the call, so it does not decide as on the whole document.
    Chunks {
        /// `[chunks + 1]`: the offsets, which must not be negative or decrease.
        cu_seqlens: &'a [i32],
        /// `[chunks]`: how many labels of its document precede each chunk. Must not be negative.
        preceding: &'a [i64],
    },
}

/// The ids from which a strategy decides, one for each label.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Tokens<'a, I> {
    /// `[N]`: the id of each label.
    pub hash_ids: &'a [I],
    /// How the labels are divided into segments and documents.
    pub layout: Layout<'a>,
    /// `[segments, n]`: the n ids before the first label of each segment. May be empty.
    pub halo: &'a [I],
    /// Ids that are never dropped, in any order.
    pub exempt: &'a [i64],
    /// The number of rows of text that are interleaved ([`interleaved`](Tokens::interleaved)); otherwise 1.
    pub interleaved: usize,
}

impl<'a, I> Tokens<'a, I> {
    fn new(hash_ids: &'a [I], layout: Layout<'a>) -> Self {
        Tokens {
            hash_ids,
            layout,
            halo: &[],
            exempt: &[],
            interleaved: 1,
        }
    }

    /// The ids of one row.
    pub fn row(hash_ids: &'a [I]) -> Self {
        Tokens::rows(hash_ids, hash_ids.len())
    }

    /// The ids of rows of `len` labels each.
    pub fn rows(hash_ids: &'a [I], len: usize) -> Self {
        Tokens::new(hash_ids, Layout::Rows { len })
    }

    /// The ids of one segment with documents that begin at the offsets `cu_seqlens`, which must not decrease (see
    /// [`Layout::Documents`]).
    pub fn documents(hash_ids: &'a [I], cu_seqlens: &'a [i32]) -> Self {
        Tokens::new(hash_ids, Layout::Documents { cu_seqlens })
    }

    /// The ids of chunks of documents, which begin at the offsets `cu_seqlens`, `[chunks + 1]`, and are preceded by
    /// `preceding[c]` labels of the same document (see [`Layout::Chunks`]).
    ///
    /// ```
    /// use xact::{Goldfish, Strategy, Tokens};
    ///
    /// // A document is divided into four chunks, of which a rank has the first and the last. Each has h − 1 ids of halo. The
    /// // first chunk has none before it, so the values are not used.
    /// let document: Vec<i32> = (31..47).collect();
    /// let ids = [&document[..4], &document[12..]].concat();
    /// let halo = [&[0, 0], &document[10..12]].concat();
    /// let goldfish = Goldfish::new(Strategy::Hash64 { k: 2, h: 3, seed: 0 })?;
    /// let keep = goldfish.keep(&Tokens::chunks(&ids, &[0, 4, 8], &[0, 12]).halo(&halo))?;
    /// let whole = goldfish.keep(&Tokens::row(&document))?;
    /// assert_eq!(keep, [&whole[..4], &whole[12..]].concat());
    /// # Ok::<(), xact::Error>(())
    /// ```
    pub fn chunks(hash_ids: &'a [I], cu_seqlens: &'a [i32], preceding: &'a [i64]) -> Self {
        let layout = Layout::Chunks {
            cu_seqlens,
            preceding,
        };
        Tokens::new(hash_ids, layout)
    }

    /// Sets that `rows` rows of text are interleaved: the ids, like the labels and the mask, are the `[s, rows]` tensor whose
    /// columns are rows of text. Label i is decided as label `(i mod rows)·s + i div rows` of the same call on the transposed
    /// tensors, `[rows, s]`. The length of a row, the offsets and the halo are those of that call, so the halo is not
    /// transposed. No window crosses the start of a row of text, even where there is no offset.
    ///
    /// ```
    /// use xact::{Goldfish, Strategy, Tokens};
    ///
    /// let goldfish = Goldfish::new(Strategy::Hash64 { k: 2, h: 2, seed: 0 })?;
    /// let (b_s, s_b) = ([1, 2, 3, 11, 12, 13], [1, 11, 2, 12, 3, 13]);
    /// let [rows, columns] = [Tokens::rows(&b_s, 3), Tokens::rows(&s_b, 3).interleaved(2)];
    /// let (rows, columns) = (goldfish.keep(&rows)?, goldfish.keep(&columns)?);
    /// assert_eq!(columns, [rows[0], rows[3], rows[1], rows[4], rows[2], rows[5]]);
    /// # Ok::<(), xact::Error>(())
    /// ```
    #[must_use]
    pub fn interleaved(mut self, rows: usize) -> Self {
        self.interleaved = rows;
        self
    }

    /// Sets the halo, `[segments, n]`: the n ids before the first label of each segment.
    #[must_use]
    pub fn halo(mut self, halo: &'a [I]) -> Self {
        self.halo = halo;
        self
    }

    /// Sets the ids that are never dropped, in any order.
    #[must_use]
    pub fn exempt(mut self, exempt: &'a [i64]) -> Self {
        self.exempt = exempt;
        self
    }

    /// Fails where [`Goldfish::keep`] would, and decides nothing. A device cannot check the offsets, so check them here if you
    /// do not trust them.
    ///
    /// # Errors
    /// As [`Goldfish::keep`].
    pub fn check(&self) -> Result<()> {
        Segments::new(self).map(|_| ())
    }
}

impl Goldfish {
    /// Makes a strategy ready, with the table and the coefficients of the official code if it needs them. Drawing a table
    /// takes some milliseconds.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if k < 2 or h = 0.
    pub fn new(strategy: Strategy) -> Result<Goldfish> {
        strategy.check()?;
        // The entries are multiples of 2⁻²⁴, so r < 1/k is v < ⌈2²⁴/k⌉, also where 1/k is rounded to f32 first.
        let below = (1u32 << 24).div_ceil(strategy.k());
        let bitmap = strategy
            .has_table()
            .then(|| pack(table24().map(|v| v < below)));
        Ok(Goldfish::with_words(strategy, bitmap))
    }

    /// Makes a strategy ready with a given table of [`TABLE_LEN`] numbers, such as the table that PyTorch drew on the GPU
    /// of an earlier training. An entry r drops a label if r < 1/k in f32; a NaN does not drop.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] as for [`new`](Goldfish::new), [`Error::Length`] if the table has another length, or
    /// [`Error::NoTable`] if the strategy uses no table.
    pub fn with_table(strategy: Strategy, table: &[f32]) -> Result<Goldfish> {
        strategy.check()?;
        check_table(&strategy, "the table", TABLE_LEN, table.len())?;
        let below = (1.0 / f64::from(strategy.k())) as f32;
        let bitmap = pack(table.iter().map(|&r| r < below));
        Ok(Goldfish::with_words(strategy, Some(bitmap)))
    }

    /// Makes a strategy ready with a given decision for each entry of the table, in the format of
    /// [`bitmap`](Goldfish::bitmap). k then has no effect.
    ///
    /// # Errors
    /// As [`with_table`](Goldfish::with_table).
    pub fn with_bitmap(strategy: Strategy, bitmap: &[u8]) -> Result<Goldfish> {
        strategy.check()?;
        check_table(&strategy, "the bitmap", TABLE_LEN.div_ceil(8), bitmap.len())?;
        let bits = (0..TABLE_LEN).map(|i| bitmap[i / 8] >> (i % 8) & 1 == 1);
        Ok(Goldfish::with_words(strategy, Some(pack(bits))))
    }

    fn with_words(strategy: Strategy, bitmap: Option<Arc<[u32]>>) -> Goldfish {
        let coefficients = match strategy {
            Strategy::DotTable { h, .. } => Some(coefficients(h).into()),
            _ => None,
        };
        Goldfish {
            strategy,
            bitmap,
            coefficients,
        }
    }

    /// Returns the strategy.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Returns a bit for each entry of the table, 1 if it drops a label, starting with the lowest bit of the first byte:
    /// 125,001 bytes. `None` if the strategy uses no table.
    pub fn bitmap(&self) -> Option<Vec<u8>> {
        let words = self.bitmap_words()?;
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(TABLE_LEN.div_ceil(8));
        Some(bytes)
    }

    /// Returns the same bits as u32 words, lowest bit first, as kernels read them.
    pub fn bitmap_words(&self) -> Option<&[u32]> {
        self.bitmap.as_deref()
    }

    /// Returns the h coefficients of [`Strategy::DotTable`], that of the oldest id first. `None` for other strategies.
    pub fn coefficients(&self) -> Option<&[i64]> {
        self.coefficients.as_deref()
    }

    /// Returns the share of keys that are dropped, as `(numerator, denominator)`. It is the expected share of dropped labels
    /// in text without repetitions. It may differ a little from 1/k, because a table has an entry more or less.
    pub fn dropped_share(&self) -> (u128, u128) {
        match (self.strategy, self.bitmap_words()) {
            (_, Some(words)) => {
                let ones: u32 = words.iter().map(|word| word.count_ones()).sum();
                (ones.into(), TABLE_LEN as u128)
            }
            (Strategy::ProductAvalanche { k, .. }, _) => (avalanche_cut(k).into(), 1 << 32),
            (strategy, _) => (cut64(strategy.k()).into(), 1 << 64),
        }
    }

    /// Returns the key of a window of h ids, oldest id first; `None` if the strategy does not hash or the window does not
    /// have h ids. For the product and dot strategies the key is the bits of an i64.
    pub fn key<I: TokenId>(&self, window: &[I]) -> Option<u64> {
        if self.strategy.h()? as usize != window.len() {
            return None;
        }
        let ids = window.iter().map(|&id| -> i64 { id.into() });
        Some(match self.strategy {
            Strategy::DotTable { .. } => {
                let coefficients = self.coefficients.iter().flat_map(|c| c.iter());
                let terms = ids.zip(coefficients).map(|(id, c)| id.wrapping_mul(*c));
                terms.fold(0, i64::wrapping_add) as u64
            }
            Strategy::Hash64 { seed, .. } => {
                let offsets = SplitMix(mix(seed));
                let terms = ids
                    .rev()
                    .zip(offsets)
                    .map(|(id, o)| mix(o.wrapping_add(id as u64)));
                terms.fold(0, u64::wrapping_add)
            }
            _ => ids.fold(1, i64::wrapping_mul) as u64,
        })
    }

    /// Returns whether a label is dropped whose window has this key and whose id is not exempt. Always false for strategies
    /// that do not hash.
    pub fn drops_key(&self, key: u64) -> bool {
        match self.strategy {
            Strategy::Static { .. } | Strategy::Random { .. } => false,
            Strategy::ProductTable { .. } | Strategy::DotTable { .. } => {
                let entry = (key as i64).rem_euclid(TABLE_LEN as i64) as usize;
                let words = self.bitmap_words().unwrap_or_default();
                words[entry / 32] >> (entry % 32) & 1 == 1
            }
            Strategy::ProductAvalanche { k, .. } => avalanche(key) < avalanche_cut(k),
            Strategy::Hash64 { k, .. } => one_in(k, mix(key)),
        }
    }

    /// Sets the fields of a kernel's parameters that depend on the strategy alone.
    // Not called without `cuda`.
    #[allow(dead_code)]
    pub(crate) fn set_args(&self, args: &mut GoldfishArgs) {
        args.k = self.strategy.k();
        args.h = self.strategy.h().unwrap_or(0);
        args.strategy = match self.strategy {
            Strategy::Static { start, .. } => {
                args.start = start;
                blocks::GOLDFISH_STATIC
            }
            Strategy::Random { k, seed } => {
                (args.seed, args.cut) = (mix(seed), cut64(k));
                blocks::GOLDFISH_RANDOM
            }
            Strategy::ProductTable { .. } => blocks::GOLDFISH_PRODUCT_TABLE,
            Strategy::ProductAvalanche { k, .. } => {
                args.cut = avalanche_cut(k);
                blocks::GOLDFISH_PRODUCT_AVALANCHE
            }
            Strategy::DotTable { .. } => blocks::GOLDFISH_DOT_TABLE,
            Strategy::Hash64 { k, seed, .. } => {
                (args.seed, args.cut) = (mix(seed), cut64(k));
                for (place, constant) in args.places.iter_mut().zip(SplitMix(args.seed)) {
                    *place = constant;
                }
                blocks::GOLDFISH_HASH64
            }
        };
    }

    /// The reference: returns for each of the N labels whether it is kept.
    ///
    /// # Errors
    /// - [`Error::Length`]: the number of labels is not a multiple of the row length or of the interleaved rows, the number
    ///   of halo ids not a multiple of the number of segments, or there is not one offset more than chunks;
    /// - [`Error::Offsets`]: the offsets decrease;
    /// - [`Error::OutOfRange`]: the offset of a chunk, or the number of labels that precede it, is negative.
    pub fn keep<I: TokenId>(&self, tokens: &Tokens<'_, I>) -> Result<Vec<bool>> {
        let ids = tokens.hash_ids;
        let mut keep = vec![true; ids.len()];
        self.for_each(tokens, |at, place| {
            let drops = match (self.strategy, place.key) {
                (Strategy::Static { k, start }, _) => {
                    let after = place.position.checked_sub(start);
                    after.is_some_and(|after| after.is_multiple_of(k.into()))
                }
                (Strategy::Random { k, seed }, _) => {
                    let state = mix(seed).wrapping_add(place.number.wrapping_mul(WEYL));
                    SplitMix(state).next().is_some_and(|r| one_in(k, r))
                }
                (_, key) => key.is_some_and(|key| self.drops_key(key)),
            };
            keep[at] = !drops || tokens.exempt.contains(&ids[at].into());
        })?;
        Ok(keep)
    }

    /// Returns the key of the window of each label; `None` where the window has fewer than h ids, and for strategies that do
    /// not hash.
    ///
    /// # Errors
    /// As [`keep`](Goldfish::keep).
    pub fn keys<I: TokenId>(&self, tokens: &Tokens<'_, I>) -> Result<Vec<Option<u64>>> {
        let mut keys = vec![None; tokens.hash_ids.len()];
        self.for_each(tokens, |at, place| keys[at] = place.key)?;
        Ok(keys)
    }

    /// Calls `label` with the index and the place of every label.
    fn for_each<I: TokenId>(
        &self,
        tokens: &Tokens<'_, I>,
        mut label: impl FnMut(usize, Place),
    ) -> Result<()> {
        let segments = Segments::new(tokens)?;
        let h = self.strategy.h().map_or(0, |h| h as usize);
        let cu_seqlens = segments.documents();
        // The halo and then the segment, so that every window is a slice.
        let mut joined = Vec::new();
        for segment in segments.iter() {
            let halo_len = segment.halo.len();
            let numbers = segment.labels.clone();
            joined.clear();
            joined.extend_from_slice(&tokens.halo[segment.halo]);
            joined.extend(numbers.clone().map(|n| tokens.hash_ids[tokens.index(n)]));
            let mut boundaries = cu_seqlens.iter().map(|&b| i64::from(b)).peekable();
            let mut last = None;
            for (column, number) in numbers.enumerate() {
                while boundaries.peek().is_some_and(|&b| b <= column as i64) {
                    last = boundaries.next();
                }
                let of_document = last.map(|start| (column as i64 - start) as u64);
                let end = halo_len + column + 1;
                let available =
                    of_document.map_or(end as u64, |before| (before + 1).min(end as u64));
                let available = match segments.in_row(number) {
                    Some(of_row) if of_row < column => available.min(of_row as u64 + 1),
                    _ => available,
                };
                let has_window = h > 0 && h as u64 <= available;
                let place = Place {
                    number: number as u64,
                    position: of_document.unwrap_or(segment.preceding + column as u64),
                    key: has_window
                        .then(|| self.key(&joined[end - h..end]))
                        .flatten(),
                };
                label(tokens.index(number), place);
            }
        }
        Ok(())
    }
}

impl<I> Tokens<'_, I> {
    /// The index of the label that has this number where no rows are interleaved.
    pub(crate) fn index(&self, number: usize) -> usize {
        match self.interleaved {
            1 => number,
            rows => {
                let len = self.hash_ids.len() / rows;
                number % len * rows + number / len
            }
        }
    }
}

/// The segments of a call, checked. Labels are numbered as if no rows were interleaved.
pub(crate) struct Segments<'a> {
    layout: Layout<'a>,
    labels: usize,
    /// The number of halo ids of a segment.
    halo_len: usize,
    /// The number of labels of a row, if rows are interleaved.
    row_len: Option<usize>,
}

/// Labels that are contiguous in the text, and what is known of the text before them.
#[derive(Clone)]
pub(crate) struct Segment {
    /// The numbers of the labels.
    pub(crate) labels: Range<usize>,
    /// The part of the halo that windows may use.
    pub(crate) halo: Range<usize>,
    /// The position of the first label in its row or document.
    pub(crate) preceding: u64,
}

impl<'a> Segments<'a> {
    pub(crate) fn new<I>(tokens: &Tokens<'a, I>) -> Result<Segments<'a>> {
        let labels = tokens.hash_ids.len();
        let row_len = rows(labels as u64, tokens.interleaved as u64)? as usize;
        let (count, cu_seqlens): (_, &[i32]) = match tokens.layout {
            Layout::Rows { len } => (rows(labels as u64, len as u64)? as usize, &[]),
            Layout::Documents { cu_seqlens } => (1, cu_seqlens),
            Layout::Chunks {
                cu_seqlens,
                preceding,
            } => {
                check_length("cu_seqlens", preceding.len() + 1, cu_seqlens.len())?;
                let offsets = cu_seqlens.iter().map(|&offset| offset.into());
                not_negative("cu_seqlens", "[0, 2^31)", offsets)?;
                not_negative("preceding", "[0, 2^63)", preceding.iter().copied())?;
                (preceding.len(), cu_seqlens)
            }
        };
        let halo_len = halo_len(tokens.halo.len() as u64, count as u64)? as usize;
        if let Some(at) = cu_seqlens.windows(2).position(|pair| pair[1] < pair[0]) {
            return Err(Error::Offsets { at: at as u64 + 1 });
        }
        Ok(Segments {
            layout: tokens.layout,
            labels,
            halo_len,
            row_len: (tokens.interleaved != 1).then_some(row_len),
        })
    }

    /// The offsets of documents, which do not decrease; empty unless one segment has documents.
    pub(crate) fn documents(&self) -> &'a [i32] {
        match self.layout {
            Layout::Documents { cu_seqlens } => cu_seqlens,
            _ => &[],
        }
    }

    /// The index of the label with this number in its row, if rows are interleaved. No window crosses the start of the row.
    pub(crate) fn in_row(&self, number: usize) -> Option<usize> {
        self.row_len.map(|len| number % len)
    }

    /// The maximum number of ids in a segment and its halo.
    pub(crate) fn longest(&self) -> usize {
        let labels = match self.layout {
            Layout::Rows { len } => len,
            _ => self.labels,
        };
        labels.saturating_add(self.halo_len)
    }

    /// The segments in order, which together have all labels.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Segment> {
        let count = match self.layout {
            Layout::Rows { len } => self.labels.checked_div(len).unwrap_or(0),
            Layout::Documents { .. } => 1,
            // The labels before the first offset and from the last one on are segments too.
            Layout::Chunks { preceding, .. } => preceding.len() + 2,
        };
        (0..count).map(|i| self.segment(i))
    }

    fn segment(&self, i: usize) -> Segment {
        let halo_of = |segment: usize, len| {
            let end = (segment + 1) * self.halo_len;
            end - len..end
        };
        match self.layout {
            Layout::Rows { len } => Segment {
                labels: i * len..(i + 1) * len,
                halo: halo_of(i, self.halo_len),
                preceding: 0,
            },
            Layout::Documents { .. } => Segment {
                labels: 0..self.labels,
                halo: halo_of(0, self.halo_len),
                preceding: 0,
            },
            Layout::Chunks {
                cu_seqlens,
                preceding,
            } => {
                let offset = |c: usize| (cu_seqlens[c] as usize).min(self.labels);
                let start = if i == 0 { 0 } else { offset(i - 1) };
                let end = cu_seqlens.get(i).map_or(self.labels, |_| offset(i));
                let chunk = i.checked_sub(1).filter(|&c| c < preceding.len());
                let preceding = chunk.map_or(0, |c| preceding[c] as u64);
                Segment {
                    labels: start..end,
                    halo: chunk.map_or(0..0, |c| {
                        halo_of(c, preceding.min(self.halo_len as u64) as usize)
                    }),
                    preceding,
                }
            }
        }
    }
}

fn not_negative(
    what: &'static str,
    range: &'static str,
    mut values: impl Iterator<Item = i64>,
) -> Result<()> {
    match values.find(|&value| value < 0) {
        Some(value) => Err(Error::OutOfRange {
            what,
            got: value as f64,
            range,
        }),
        None => Ok(()),
    }
}

/// The place of a label in the text.
struct Place {
    /// The index of the label where no rows are interleaved.
    number: u64,
    /// The index of the label in its row or document.
    position: u64,
    /// The key of its window.
    key: Option<u64>,
}

fn check_table(strategy: &Strategy, what: &'static str, expected: usize, got: usize) -> Result<()> {
    if !strategy.has_table() {
        return Err(Error::NoTable {
            strategy: strategy.name(),
        });
    }
    check_length(what, expected, got)
}

/// The number of rows of `len` labels each.
pub(crate) fn rows(labels: u64, len: u64) -> Result<u64> {
    if labels == 0 {
        return Ok(0);
    }
    if len != 0 && labels.is_multiple_of(len) {
        return Ok(labels / len);
    }
    Err(Error::Length {
        what: "hash_ids",
        expected: labels.checked_next_multiple_of(len).unwrap_or(0),
        got: labels,
    })
}

/// The number of halo ids of each segment.
pub(crate) fn halo_len(halo: u64, segments: u64) -> Result<u64> {
    if halo == 0 {
        return Ok(0);
    }
    if segments != 0 && halo.is_multiple_of(segments) {
        return Ok(halo / segments);
    }
    Err(Error::Length {
        what: "the halo",
        expected: halo.checked_next_multiple_of(segments).unwrap_or(0),
        got: halo,
    })
}

/// The increment of SplitMix64: 2⁶⁴ divided by the golden ratio.
pub(crate) const WEYL: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finaliser of SplitMix64 (variant 13 of Stafford, "Better Bit Mixing", 2011).
#[inline(always)] // of loops over vectors
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// SplitMix64 (Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014). The field is the state.
pub(crate) struct SplitMix(pub(crate) u64);

impl Iterator for SplitMix {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(WEYL);
        Some(mix(self.0))
    }
}

/// Whether a random number is in the first of k equal parts of the range of u64.
fn one_in(k: u32, random: u64) -> bool {
    (u128::from(random) * u128::from(k)) >> 64 == 0
}

/// The threshold c such that `one_in(k, random)` is `random < c`.
pub(crate) fn cut64(k: u32) -> u64 {
    u64::MAX / u64::from(k) + 1
}

/// `hashint` of the official code: each of its sums of shifts is a product.
#[inline(always)] // of loops over vectors
pub(crate) fn avalanche(key: u64) -> u64 {
    const MASK: u64 = u32::MAX as u64;
    const ONES21: u64 = (1 << 21) - 1;
    let mut a = key.wrapping_mul(ONES21).wrapping_sub(1) & MASK;
    a = a.wrapping_mul(ONES21).wrapping_sub(1);
    a ^= a >> 24;
    a = (a.wrapping_mul(265) & MASK) * 265;
    a ^= a >> 14;
    a = (a.wrapping_mul(21) & MASK) * 21;
    a ^= a >> 28;
    a.wrapping_mul((1 << 31) + 1) & MASK
}

/// The threshold of the official comparison: the least number that is not below (2³² − 1)/k when both are rounded to f32.
pub(crate) fn avalanche_cut(k: u32) -> u64 {
    let threshold = (f64::from(u32::MAX) / f64::from(k)) as f32;
    let is_below = |a: u64| (a as f32) < threshold;
    let (mut low, mut high) = (0, 1 << 32);
    while low < high {
        let middle = (low + high) / 2;
        if is_below(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
