//! Goldfish: a share of the labels takes no part in the loss, and which ones is a function of the text, so
//! that a passage is never seen whole, however often it is repeated (Hans et al., "Be like a Goldfish,
//! Don't Memorize!", [arXiv 2406.10209](https://arxiv.org/abs/2406.10209)).
//!
//! A [`Strategy`] decides from the **window** of a label: the `h` ids that end with the label's own (the
//! text of the paper speaks of the ids before it; every released implementation includes it). Labels are
//! already shifted: index `s` is the label of logit row `s`.
//!
//! - A label whose window would begin before its segment, its document or its halo is **never dropped**.
//!   A segment shorter than `h` is kept whole (the official code raises an error).
//! - `hash_ids` need not be the labels: give the true ids here even where a label is ignored. Any value is
//!   legal, negative ones too; ids of a narrower type decide as the same numbers in i64 do.
//! - A **segment** is a row of `len` labels, or all labels where offsets cut them into **documents**. No
//!   window crosses a boundary. Official masks know rows only.
//! - A **halo** is a number of ids of each segment that precede its first label and have no label here:
//!   what a context-parallel rank gets from its neighbour. With `h − 1` of them a hash decides as in the whole
//!   row. [`Random`](Strategy::Random) and [`Static`](Strategy::Static) look at no ids, so that no halo helps
//!   them: the former counts the labels of the call, the latter those of the segment, unless offsets say how far
//!   before it its first document [begins](Layout::Documents).
//! - **Exempt** ids, such as a tokenizer's special ones, are never dropped; they take part in the windows
//!   of others.
//!
//! Arithmetic is of integers, so the CPU and every device decide alike. [`Goldfish::keep`] is the
//! reference:
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
//! The strategy of this crate; all numbers are u64 and wrap. `mix` is the finaliser of SplitMix64, and
//! `split(s, n)` the generator's output number `n`, counted from 0, from the state `s`:
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
//! Each id is mixed with its distance from the label before anything is added, so the sum depends on the
//! order, no id is invisible, and equal ids at different places do not cancel. Additions commute: the threads
//! of a warp may share a window. For `seed = 0` and the ids 1, 2, 3, 4 (the label's own last), the key at
//! `h = 4` is `0x26fa361bfc0aafac`, and that of the single id 0 at `h = 1` is `0x48218226ff3cd4bf`.

use std::fmt;
use std::sync::Arc;

use crate::blocks::{self, GoldfishArgs};
use crate::dtype::Portable;
use crate::error::{Error, Result, check_length};

mod mt19937;

use mt19937::Mt19937;

/// How it is decided which labels are dropped. About one in `k`, at least 2, is; hashes are of `h` ids, at
/// least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// The labels `start`, `start + k`, `start + 2k`, … of each row, or document where there are offsets.
    /// Moves with packing; the baseline of the paper (`static` of the official code).
    Static {
        /// Period.
        k: u32,
        /// First label dropped.
        start: u64,
    },
    /// Labels at random, independent of the text: label number `i` of the call, counted over all rows, is
    /// dropped if `floor(split(mix(seed), i) · k / 2⁶⁴) == 0`, in the terms of
    /// [`Hash64`](self#hash64). Give each call a seed of its own. (The official `seeded_random` means this
    /// and drops whole rows: goldfish-loss issue #3.)
    Random {
        /// One label in k is dropped.
        k: u32,
        /// Any number.
        seed: u64,
    },
    /// The product of the window's ids modulo 1,000,003 selects an entry of a table of random numbers; the
    /// label is dropped if it is below 1/k. `hash-table` of the official code
    /// ([`apply_goldfish`](https://github.com/ahans30/goldfish-loss/blob/35d29f96553462f6c30417f8065225aa6b89e172/lit_gpt/utils.py))
    /// with the table that PyTorch draws on a CPU, and of Apertus v1
    /// ([swiss-ai/Megatron-LM](https://github.com/swiss-ai/Megatron-LM/blob/81d44dbe25c22190989fa8a12284bdb8d1303b40/megatron/core/datasets/gpt_dataset.py)),
    /// bit for bit. The product keeps 64 bits and gains a factor of 2 with every even id, so that at
    /// `h = 50` it is 0 for a tenth of all windows and more: use it up to about `h = 24`, or for the sake of
    /// what was trained with it. It does not see the order of ids, nor an id 1, and an id 0 hides the rest.
    ProductTable {
        /// About one label in k is dropped.
        k: u32,
        /// Ids in a window; the paper has 13, Apertus v1 50.
        h: u32,
    },
    /// The same product, mixed to 32 bits that are compared with (2³² − 1)/k in f32: `hash-avalanche` of the
    /// official code (`hashint`). It begins with the lower 32 bits of the product, which for random ids are all 0
    /// for 0.2 % of the windows at `h = 13`, for 14 % at 24 and for half of them at 32.
    ProductAvalanche {
        /// About one label in k is dropped.
        k: u32,
        /// Ids in a window.
        h: u32,
    },
    /// The sum of the window's ids, each times a coefficient of its place, in the product's stead, and the same
    /// table: the successor in
    /// [swiss-ai/Megatron-LM-MoE](https://github.com/swiss-ai/Megatron-LM-MoE/blob/3234a2a880866d071b21d0d6a77e4dd2c131536c/megatron/core/datasets/goldfish.py),
    /// bit for bit.
    DotTable {
        /// About one label in k is dropped.
        k: u32,
        /// Ids in a window; 50 there.
        h: u32,
    },
    /// A 64-bit hash of the window that depends on every id and its place, and drops exactly one key in k:
    /// [its definition](self#hash64). What to use unless you must match one of the others.
    Hash64 {
        /// One label in k is dropped.
        k: u32,
        /// Ids in a window.
        h: u32,
        /// Any number; another one drops other labels.
        seed: u64,
    },
}

impl Strategy {
    /// Its name on the command line: `static`, `random`, `product-table`, `product-avalanche`, `dot-table`
    /// or `hash64`.
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

    /// About one label in this many is dropped.
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

    /// Ids in a window; `None` where the ids do not matter.
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

/// Entries of a table, a prime: `TABLE_SIZE` of the official code.
pub const TABLE_LEN: usize = blocks::GOLDFISH_TABLE_LEN as usize;

/// The seed of the tables and, with h added, of the coefficients: the 47th Fibonacci number, a prime.
const SEED: u32 = 2_971_215_073;

/// The table of the official code as PyTorch draws it on a CPU: `torch.rand(1_000_003)` from a generator
/// with the seed 2971215073. Uniform multiples of 2⁻²⁴ in [0, 1). The SHA-256 of its little-endian bytes is
/// 33025be4fa64d02d0a2e630dfa7fc166bf76a5364206fe4cd8973ce46e836562.
///
/// PyTorch draws other tables on GPUs, one for each GPU model; see [`Goldfish::with_table`].
pub fn table() -> Vec<f32> {
    const UNIT: f32 = 1.0 / (1 << 24) as f32;
    table24().map(|v| v as f32 * UNIT).collect()
}

/// The table in units of 2⁻²⁴.
fn table24() -> impl Iterator<Item = u32> {
    let mut generator = Mt19937::new(SEED);
    (0..TABLE_LEN).map(move |_| generator.next_u32() & 0xff_ffff)
}

/// The coefficients of [`Strategy::DotTable`], the oldest id's first: h odd numbers below 2⁶², drawn as
/// PyTorch's CPU generator does from the seed 2971215073 + h.
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

/// A strategy ready to decide: checked, with the table and the coefficients that it needs.
///
/// Cheap to clone.
#[derive(Clone)]
pub struct Goldfish {
    strategy: Strategy,
    /// Of the strategies with a table: a bit for each entry, 1 if it drops.
    bitmap: Option<Arc<[u32]>>,
    /// Of the dot product.
    coefficients: Option<Arc<[i64]>>,
}

impl fmt::Debug for Goldfish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Goldfish")
            .field("strategy", &self.strategy)
            .finish_non_exhaustive()
    }
}

/// An integer type of token ids: [`u8`], [`u16`], [`u32`], [`i32`] or [`i64`]. Unsigned ones are read as such.
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

/// How labels are cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout<'a> {
    /// Rows of `len` labels each.
    Rows {
        /// Labels of a row; the number of labels is a multiple.
        len: usize,
    },
    /// One segment, cut into documents: document d begins at label `cu_seqlens[d]` and ends before label
    /// `cu_seqlens[d + 1]`. Labels before the first offset or from the last one on, if there are any, are
    /// cut off in the same way. The first offset is negative if the first document began that many labels
    /// before the segment; the halo then holds the last ids of that part.
    Documents {
        /// Offsets that do not decrease.
        cu_seqlens: &'a [i32],
    },
}

/// The ids that decide.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Tokens<'a, I> {
    /// One id for each label.
    pub hash_ids: &'a [I],
    /// How they are cut.
    pub layout: Layout<'a>,
    /// `[segments, n]`: the n ids before the first label of each segment; may be empty.
    pub halo: &'a [I],
    /// Ids that are never dropped, in any order.
    pub exempt: &'a [i64],
}

impl<'a, I> Tokens<'a, I> {
    fn new(hash_ids: &'a [I], layout: Layout<'a>) -> Self {
        Tokens {
            hash_ids,
            layout,
            halo: &[],
            exempt: &[],
        }
    }

    /// One row.
    pub fn row(hash_ids: &'a [I]) -> Self {
        Tokens::rows(hash_ids, hash_ids.len())
    }

    /// Rows of `len` labels each.
    pub fn rows(hash_ids: &'a [I], len: usize) -> Self {
        Tokens::new(hash_ids, Layout::Rows { len })
    }

    /// One segment, cut into documents by offsets that do not decrease.
    pub fn documents(hash_ids: &'a [I], cu_seqlens: &'a [i32]) -> Self {
        Tokens::new(hash_ids, Layout::Documents { cu_seqlens })
    }

    /// Sets the ids before the first label of each segment, `[segments, n]`.
    #[must_use]
    pub fn halo(mut self, halo: &'a [I]) -> Self {
        self.halo = halo;
        self
    }

    /// Sets the ids that are never dropped.
    #[must_use]
    pub fn exempt(mut self, exempt: &'a [i64]) -> Self {
        self.exempt = exempt;
        self
    }
}

impl Goldfish {
    /// With the tables of the official recipes. Drawing one takes some milliseconds.
    ///
    /// # Errors
    /// [`Error::OutOfRange`]: k < 2 or h = 0.
    pub fn new(strategy: Strategy) -> Result<Goldfish> {
        strategy.check()?;
        // A table's entries are multiples of 2⁻²⁴, and so r < 1/k is v < ⌈2²⁴/k⌉, also where 1/k is
        // rounded to f32 first.
        let below = (1u32 << 24).div_ceil(strategy.k());
        let bitmap = strategy
            .has_table()
            .then(|| pack(table24().map(|v| v < below)));
        Ok(Goldfish::with_words(strategy, bitmap))
    }

    /// With a table of the caller's, of [`TABLE_LEN`] numbers, such as the one that PyTorch drew on the GPU of
    /// an earlier training: an entry r drops if r < 1/k in f32 (a NaN does not).
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Length`] (of the table), [`Error::NoTable`] (the strategy has none).
    pub fn with_table(strategy: Strategy, table: &[f32]) -> Result<Goldfish> {
        strategy.check()?;
        check_table(&strategy, "the table", TABLE_LEN, table.len())?;
        let below = (1.0 / f64::from(strategy.k())) as f32;
        let bitmap = pack(table.iter().map(|&r| r < below));
        Ok(Goldfish::with_words(strategy, Some(bitmap)))
    }

    /// With the caller's decision for each entry of the table, as [`bitmap`](Goldfish::bitmap) returns it;
    /// k then has no meaning but that of a name.
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

    /// The strategy.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// A bit for each entry of the table, from the lowest of the first byte on, 1 if it drops: 125,001 bytes.
    /// `None` if the strategy has no table.
    pub fn bitmap(&self) -> Option<Vec<u8>> {
        let words = self.bitmap_words()?;
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.truncate(TABLE_LEN.div_ceil(8));
        Some(bytes)
    }

    /// The same bits in words, from the lowest bit of the first on, as kernels read them.
    pub fn bitmap_words(&self) -> Option<&[u32]> {
        self.bitmap.as_deref()
    }

    /// The coefficients of [`Strategy::DotTable`], the oldest id's first.
    pub fn coefficients(&self) -> Option<&[i64]> {
        self.coefficients.as_deref()
    }

    /// The share of keys that are dropped, which is what to expect of text without repetitions: (dropped,
    /// of). Not always 1/k: a table has an entry more or less.
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

    /// The key of a window, oldest id first; `None` if the strategy has no windows or this one is not of h
    /// ids. For the strategies of others a signed number in the bits of a u64.
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

    /// Whether a label whose window has this key is dropped, unless it is exempt.
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

    /// Fills in what of a kernel's parameters is the strategy's own.
    // Without `cuda` nobody asks.
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

    /// The reference: for each label whether it is kept.
    ///
    /// # Errors
    /// [`Error::Length`]: the number of labels is no multiple of a row, or that of halo ids none of the
    /// segments. [`Error::Offsets`]: offsets that decrease.
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
                    let state = mix(seed).wrapping_add((at as u64).wrapping_mul(WEYL));
                    SplitMix(state).next().is_some_and(|r| one_in(k, r))
                }
                (_, key) => key.is_some_and(|key| self.drops_key(key)),
            };
            keep[at] = !drops || tokens.exempt.contains(&ids[at].into());
        })?;
        Ok(keep)
    }

    /// The key of each label's window, `None` where it is not of h ids, or the strategy has no windows.
    ///
    /// # Errors
    /// As [`keep`](Goldfish::keep).
    pub fn keys<I: TokenId>(&self, tokens: &Tokens<'_, I>) -> Result<Vec<Option<u64>>> {
        let mut keys = vec![None; tokens.hash_ids.len()];
        self.for_each(tokens, |at, place| keys[at] = place.key)?;
        Ok(keys)
    }

    /// Calls `label` with the index and the place of every label, in order.
    fn for_each<I: TokenId>(
        &self,
        tokens: &Tokens<'_, I>,
        mut label: impl FnMut(usize, Place),
    ) -> Result<()> {
        let ids = tokens.hash_ids;
        let Segments {
            count,
            len,
            halo_len,
            cu_seqlens,
        } = Segments::new(tokens)?;
        let h = self.strategy.h().map_or(0, |h| h as usize);
        // The segment with its halo before it, so that every window is a slice.
        let mut joined = Vec::with_capacity(halo_len + len);
        for segment in 0..count {
            joined.clear();
            joined.extend_from_slice(&tokens.halo[segment * halo_len..][..halo_len]);
            joined.extend_from_slice(&ids[segment * len..][..len]);
            let mut boundaries = cu_seqlens.iter().map(|&b| i64::from(b)).peekable();
            let mut last = None;
            for column in 0..len {
                while boundaries.peek().is_some_and(|&b| b <= column as i64) {
                    last = boundaries.next();
                }
                let of_document = last.map(|start| (column as i64 - start) as u64);
                let end = halo_len + column + 1;
                let available =
                    of_document.map_or(end as u64, |before| (before + 1).min(end as u64));
                let has_window = h > 0 && h as u64 <= available;
                let place = Place {
                    position: of_document.unwrap_or(column as u64),
                    key: has_window
                        .then(|| self.key(&joined[end - h..end]))
                        .flatten(),
                };
                label(segment * len + column, place);
            }
        }
        Ok(())
    }
}

/// How labels are cut.
pub(crate) struct Segments<'a> {
    /// How many segments.
    pub(crate) count: usize,
    /// Labels of each.
    pub(crate) len: usize,
    /// Halo ids of each.
    pub(crate) halo_len: usize,
    /// Offsets of documents, which do not decrease.
    pub(crate) cu_seqlens: &'a [i32],
}

impl<'a> Segments<'a> {
    pub(crate) fn new<I>(tokens: &Tokens<'a, I>) -> Result<Segments<'a>> {
        let labels = tokens.hash_ids.len();
        let (count, len, cu_seqlens): (_, _, &[i32]) = match tokens.layout {
            Layout::Rows { len } => (rows(labels as u64, len as u64)? as usize, len, &[]),
            Layout::Documents { cu_seqlens } => (1, labels, cu_seqlens),
        };
        let halo_len = halo_len(tokens.halo.len() as u64, count as u64)? as usize;
        if let Some(at) = cu_seqlens.windows(2).position(|pair| pair[1] < pair[0]) {
            return Err(Error::Offsets { at: at as u64 + 1 });
        }
        Ok(Segments {
            count,
            len,
            halo_len,
            cu_seqlens,
        })
    }
}

/// What a decision depends on.
struct Place {
    /// In the row or the document.
    position: u64,
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

/// Rows of `len` labels each.
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

/// Halo ids of each segment.
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

/// SplitMix64 (Steele, Lea & Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014) from a
/// state.
pub(crate) struct SplitMix(pub(crate) u64);

impl Iterator for SplitMix {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(WEYL);
        Some(mix(self.0))
    }
}

/// Whether a random number is in the first of k equal parts.
fn one_in(k: u32, random: u64) -> bool {
    (u128::from(random) * u128::from(k)) >> 64 == 0
}

/// What `random` must be below for `one_in(k, random)`.
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

/// The least number that is not below (2³² − 1)/k once both are rounded to f32, which is what the official
/// comparison comes to.
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
