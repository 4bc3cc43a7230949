//! Matrix products in f32, C = A·B or C += A·B, of operands of any element type. They are converted while they are packed, so
//! no f32 copy of an operand is made.
//!
//! An element of C is a sum over blocks of [`DEPTH`] terms. The sum of a block is one chain of fused multiply-adds, and the
//! sums of the blocks are added in their order. The bits therefore depend on neither the number of rows and columns, nor the
//! tiles, nor the threads, nor the instruction set.
//!
//! C is divided into tiles, which the threads share. A thread packs what a tile needs of A and B for a block of terms into
//! panels, which are as wide as the registers of the innermost loop. It adds their product to a tile in f32, and rounds the
//! finished tile to the type of C.

use std::ops::Range;

use super::simd::{InstructionSet, TileTask};
use crate::dtype::Element;
use crate::shape::Rows;

/// The number of terms of a block: a panel of B then fits into the L1 cache.
pub const DEPTH: usize = 256;

/// The most rows and columns of a tile. An element that is packed serves as many multiply-adds as the other side of the tile
/// is long; the packed blocks of A and B take a MiB.
const MOST: usize = 512;

/// The side below which a tile is not divided to occupy more threads: packing would take as long as multiplying.
const LEAST: usize = 64;

/// The floating-point operations from which several threads are used. They take some 100 µs, and handing work to another
/// thread 12 µs.
#[cfg(feature = "rayon")]
const PARALLEL_FROM: u64 = 1 << 23;

/// Where the lines of an operand begin, in elements.
#[derive(Clone, Copy)]
pub enum Starts<'a> {
    /// Line i begins at offset + i·pitch.
    Pitch { offset: usize, pitch: usize },
    /// Line i begins at element i of the list.
    Listed(&'a [usize]),
}

/// A matrix as lines of contiguous elements.
#[derive(Clone, Copy)]
pub struct Lines<'a, T> {
    pub elements: &'a [T],
    pub starts: Starts<'a>,
}

impl Starts<'_> {
    /// The starts of rows that are in no groups.
    pub fn of(rows: Rows) -> Self {
        Starts::Pitch {
            offset: rows.offset,
            pitch: rows.pitch,
        }
    }
}

impl<'a, T> Lines<'a, T> {
    #[inline(always)]
    fn get(&self, line: usize, range: Range<usize>) -> &'a [T] {
        let start = match self.starts {
            Starts::Pitch { offset, pitch } => offset + line * pitch,
            Starts::Listed(starts) => starts[line],
        };
        &self.elements[start + range.start..start + range.end]
    }
}

/// The operand A or B of a product.
#[derive(Clone, Copy)]
pub enum Operand<'a, T> {
    /// The lines are the rows of A or the columns of B; the terms of the sum lie along a line.
    Along(Lines<'a, T>),
    /// Each line has one term of the sum for every row of A or column of B.
    Across(Lines<'a, T>),
}

/// Packs the part of an operand that has the rows (of A) or columns (of B) in `outer` and the terms in `terms` as
/// `[panels, terms, P]`, with zeros after the last row or column.
struct Pack<'a, 'b, T> {
    from: Operand<'a, T>,
    is_a: bool,
    outer: Range<usize>,
    terms: Range<usize>,
    to: &'b mut [f32],
}

impl<T: Element> TileTask for Pack<'_, '_, T> {
    #[inline(always)]
    fn run<const ROWS: usize, const COLS: usize>(self) {
        match self.is_a {
            true => self.panels::<ROWS>(),
            false => self.panels::<COLS>(),
        }
    }
}

impl<T: Element> Pack<'_, '_, T> {
    #[inline(always)]
    fn panels<const P: usize>(self) {
        let Pack {
            from,
            outer,
            terms,
            to,
            ..
        } = self;
        let (to, depth) = (to.as_chunks_mut::<P>().0, terms.len());
        match from {
            Operand::Along(lines) => {
                let panels = to.chunks_exact_mut(depth);
                for (panel, first) in panels.zip(outer.clone().step_by(P)) {
                    let count = P.min(outer.end - first);
                    for i in 0..count {
                        let line = lines.get(first + i, terms.clone());
                        for (to, from) in panel.iter_mut().zip(line) {
                            to[i] = from.widen();
                        }
                    }
                    if count < P {
                        panel.iter_mut().for_each(|to| to[count..].fill(0.0));
                    }
                }
            }
            Operand::Across(lines) => {
                for (k, term) in terms.enumerate() {
                    let (whole, rest) = lines.get(term, outer.clone()).as_chunks::<P>();
                    for (panel, from) in whole.iter().enumerate() {
                        for (to, from) in to[panel * depth + k].iter_mut().zip(from) {
                            *to = from.widen();
                        }
                    }
                    if !rest.is_empty() {
                        let to = &mut to[whole.len() * depth + k];
                        to.fill(0.0);
                        for (to, from) in to.iter_mut().zip(rest) {
                            *to = from.widen();
                        }
                    }
                }
            }
        }
    }
}

/// Fills the tile from rows of C.
struct Load<'a, 'b, C> {
    from: &'a [&'b mut [C]],
    rows: usize,
    tile: &'a mut [f32],
}

impl<C: Element> TileTask for Load<'_, '_, C> {
    #[inline(always)]
    fn run<const ROWS: usize, const COLS: usize>(self) {
        let tile = self.tile.as_chunks_mut::<COLS>().0;
        for (i, row) in self.from.iter().enumerate() {
            for (panel, from) in row.chunks(COLS).enumerate() {
                for (to, from) in tile[panel * self.rows + i].iter_mut().zip(from) {
                    *to = from.widen();
                }
            }
        }
    }
}

/// Rounds the tile to rows of C.
struct Store<'a, 'b, C> {
    tile: &'a [f32],
    rows: usize,
    to: &'a mut [&'b mut [C]],
}

impl<C: Element> TileTask for Store<'_, '_, C> {
    #[inline(always)]
    fn run<const ROWS: usize, const COLS: usize>(self) {
        let tile = self.tile.as_chunks::<COLS>().0;
        for (i, row) in self.to.iter_mut().enumerate() {
            for (panel, to) in row.chunks_mut(COLS).enumerate() {
                for (to, from) in to.iter_mut().zip(&tile[panel * self.rows + i]) {
                    *to = C::narrow(*from);
                }
            }
        }
    }
}

/// How C is divided into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    set: InstructionSet,
    rows: usize,
    cols: usize,
}

impl Tiling {
    /// The tiles of a `[rows, cols]` matrix: at most [`MOST`] on a side, or fewer rows and columns if that occupies more of
    /// the threads.
    fn new(rows: usize, cols: usize) -> Tiling {
        let mut of_rows = rows.div_ceil(MOST).max(1);
        let mut of_cols = cols.div_ceil(MOST).max(1);
        let (set, threads) = (InstructionSet::current(), threads());
        loop {
            let tiling = Tiling {
                set,
                rows: rows.div_ceil(of_rows),
                cols: cols.div_ceil(of_cols),
            };
            if of_rows * of_cols >= threads || tiling.rows.max(tiling.cols) < 2 * LEAST {
                return tiling;
            }
            match tiling.cols >= tiling.rows {
                true => of_cols += 1,
                false => of_rows += 1,
            }
        }
    }

    /// The most bytes that the threads need for any division of at most `rows` rows and `cols` columns.
    pub fn scratch_bytes(rows: usize, cols: usize) -> u64 {
        let largest = Tiling {
            set: InstructionSet::current(),
            rows: rows.min(MOST),
            cols: cols.min(MOST),
        };
        (threads() * Scratch::lens(largest).iter().sum::<usize>() * size_of::<f32>()) as u64
    }

    /// The most bytes of the list of tiles for each row of `cols` columns.
    pub fn row_bytes(cols: usize) -> usize {
        (1 + cols.div_ceil(LEAST)) * size_of::<&[f32]>()
    }
}

/// The number of threads that share the tiles.
fn threads() -> usize {
    #[cfg(feature = "rayon")]
    return rayon::current_num_threads();
    #[cfg(not(feature = "rayon"))]
    1
}

/// The bytes of a cache line.
const LINE: usize = 64;

/// The memory of a thread: packed blocks of A and B, and a tile.
struct Scratch([Vec<f32>; 3]);

impl Scratch {
    fn lens(tiling: Tiling) -> [usize; 3] {
        let [of_row, of_col] = tiling.set.tile();
        let (rows, cols) = (
            tiling.rows.next_multiple_of(of_row),
            tiling.cols.next_multiple_of(of_col),
        );
        [rows * DEPTH, cols * DEPTH, rows * cols].map(|len| len + LINE / size_of::<f32>())
    }

    fn new(tiling: Tiling) -> Scratch {
        Scratch(Scratch::lens(tiling).map(|len| vec![0.0; len]))
    }

    /// The buffers, from a cache line on: registers that are loaded from two lines cost twice as much.
    fn aligned(&mut self) -> [&mut [f32]; 3] {
        self.0.each_mut().map(|buffer| {
            // A pointer may have no offset, in theory.
            let start = buffer.as_ptr().align_offset(LINE).min(buffer.len());
            &mut buffer[start..]
        })
    }
}

/// A tile of C.
struct Tile<'a, C> {
    rows: Range<usize>,
    cols: Range<usize>,
    /// The columns of each row.
    elements: Vec<&'a mut [C]>,
}

/// A product C = A·B, or C += A·B.
pub struct Product<'a, A, B> {
    pub a: Operand<'a, A>,
    pub b: Operand<'a, B>,
    /// The number of terms of each sum.
    pub terms: usize,
    /// Whether the product is added to C. The sums then start from its elements.
    pub accumulate: bool,
}

impl<A: Element, B: Element> Product<'_, A, B> {
    /// Computes the rows of C, which have `cols` columns, on the threads of rayon's current pool if there is enough work.
    /// `done` is told the floating-point operations of each tile that is finished.
    pub fn run<'c, C: Element>(
        &self,
        cols: usize,
        rows: impl Iterator<Item = &'c mut [C]>,
        done: &(dyn Fn(u64) + Sync),
    ) {
        let rows: Vec<_> = rows.collect();
        let tiling = Tiling::new(rows.len(), cols);
        let flops = |rows: usize, cols: usize| 2 * (rows * cols) as u64 * self.terms as u64;
        let count = rows.len();
        let mut tiles = Vec::new();
        let mut rest = rows.into_iter();
        for first in (0..count).step_by(tiling.rows.max(1)) {
            let rows = first..count.min(first + tiling.rows);
            let mut columns: Vec<_> = rest.by_ref().take(rows.len()).collect();
            for first in (0..cols).step_by(tiling.cols.max(1)) {
                let cols = first..cols.min(first + tiling.cols);
                let elements = columns.iter_mut();
                let elements = elements.filter_map(|row| row.split_off_mut(..cols.len()));
                tiles.push(Tile {
                    rows: rows.clone(),
                    elements: elements.collect(),
                    cols,
                });
            }
        }
        let work = |scratch: &mut Scratch, tile: Tile<'_, C>| {
            let flops = flops(tile.rows.len(), tile.cols.len());
            self.tile(tiling.set, scratch, tile);
            done(flops);
        };
        #[cfg(feature = "rayon")]
        if flops(count, cols) >= PARALLEL_FROM {
            use rayon::prelude::*;
            return tiles
                .into_par_iter()
                .for_each_init(|| Scratch::new(tiling), work);
        }
        let mut scratch = Scratch::new(tiling);
        tiles.into_iter().for_each(|tile| work(&mut scratch, tile));
    }

    fn tile<C: Element>(&self, set: InstructionSet, scratch: &mut Scratch, mut to: Tile<'_, C>) {
        let [of_row, of_col] = set.tile();
        let rows = to.rows.len().next_multiple_of(of_row);
        let cols = to.cols.len().next_multiple_of(of_col);
        let [a, b, tile] = scratch.aligned();
        let tile = &mut tile[..rows * cols];
        if self.accumulate {
            set.run_tile(Load {
                from: &to.elements,
                rows,
                tile,
            });
        } else if self.terms == 0 {
            tile.fill(0.0);
        }
        for first in (0..self.terms).step_by(DEPTH) {
            let terms = first..self.terms.min(first + DEPTH);
            let (a, b) = (&mut a[..rows * terms.len()], &mut b[..cols * terms.len()]);
            set.run_tile(Pack {
                from: self.a,
                is_a: true,
                outer: to.rows.clone(),
                terms: terms.clone(),
                to: a,
            });
            set.run_tile(Pack {
                from: self.b,
                is_a: false,
                outer: to.cols.clone(),
                terms: terms.clone(),
                to: b,
            });
            let add = first > 0 || self.accumulate;
            let mut products = tile.chunks_exact_mut(of_row * of_col);
            for b in b.chunks_exact(of_col * terms.len()) {
                let panels = a.chunks_exact(of_row * terms.len());
                for (a, tile) in panels.zip(&mut products) {
                    set.multiply(a, b, tile, add);
                }
            }
        }
        set.run_tile(Store {
            tile,
            rows,
            to: &mut to.elements,
        });
    }
}
