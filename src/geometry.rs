//! The launch geometry: block sizes, and how a tensor is divided into tiles and chunks.
//!
//! These numbers stand only here. `build.rs` includes this file and passes [`DEFINES`] to nvcc. Any values give correct
//! results and only change speed. The division depends on the shape, the pitches and the alignment of x, and never on the
//! device, so that the parameter gradients are reproducible to the bit.

/// Threads per block.
///
/// 256 divides the 2048 threads of an A100 or H100 SM. It is small enough that several blocks are resident, so the SM does
/// not idle while one block waits.
pub const BLOCK: u64 = 256;

/// Blocks of a kernel with one input (a forward) that must fit on an SM at once. This caps a thread at 64 registers.
///
/// The number depends on the number of inputs, so that every kernel keeps 32 to 48 KiB in flight.
pub const BLOCKS_OF_1: u64 = 4;

/// The same for kernels with two inputs (a backward or a gated forward). This caps a thread at 80 registers.
pub const BLOCKS_OF_2: u64 = 3;

/// The same for kernels with three inputs (a gated backward). This caps a thread at 128 registers, of which the kernel uses
/// nearly all.
pub const BLOCKS_OF_3: u64 = 2;

/// 16-byte vectors that a thread has in flight per input buffer.
///
/// CUB's rule wants 32 KiB in flight per SM on an H100: 2 vectors × 16 bytes × the 1024 threads of
/// [`BLOCKS_OF_1`] blocks.
pub const PACKS: u64 = 2;

/// 16-byte vectors of a row of logits that a thread has in flight.
///
/// With the 768 threads of [`BLOCKS_OF_ROWS`] blocks this is 48 KiB per SM, which an H200 needs. A block reads a row of
/// 131,072 16-bit logits in 16 batches.
pub const ROW_PACKS: u64 = 4;

/// Blocks of the row kernels that must fit on an SM at once. This caps a thread at 80 registers, of which a batch of vectors
/// takes 16.
pub const BLOCKS_OF_ROWS: u64 = 3;

/// The largest cluster size, in blocks, that CUDA calls portable to every device of compute capability 9.0 and later. A
/// device may have room for less; the loader asks it.
pub const MAX_CLUSTER: u64 = 8;

/// Bytes of the widest load and store.
pub const VECTOR_BYTES: u64 = 16;

/// The maximum number of chunks of a backward. A chunk has one block, and one partial sum per parameter.
///
/// The blocks of the last wave leave multiprocessors idle for at most one chunk. With 2 to 4 blocks on each of 132 or 148
/// SMs (the registers of the kernels allow no more), 16,384 chunks are at least 27 waves, so that this is below 4 % of the
/// time. The second stage then reads 128 KiB for each parameter.
pub const MAX_CHUNKS: u64 = 16_384;

/// The maximum number of blocks of the second stage for each parameter.
///
/// A thread then reads [`MAX_CHUNKS`]/([`FOLDS`]·[`BLOCK`]) = 8 partial sums, all at once, and the last block the sums of 8
/// blocks.
pub const FOLDS: u64 = 8;

/// The maximum number of chunks over which losses are summed, and of blocks that write a Goldfish mask.
///
/// One block adds the chunks up in 16 steps.
pub const MAX_ROW_CHUNKS: u64 = 4096;

/// If there are fewer rows of logits than this, the rows are split into parts, up to this number of parts in all.
///
/// This is about two waves of [`BLOCKS_OF_ROWS`] blocks on the 132 SMs of an H100, so that one long row uses the device.
#[allow(dead_code)] // unused by build.rs, which includes this file
pub const SPLIT_BLOCKS: u64 = 1024;

/// The macros that nvcc gets, as `-D` options.
#[allow(dead_code)] // read by build.rs, which includes this file
pub const DEFINES: [(&str, u64); 10] = [
    ("XACT_BLOCK", BLOCK),
    ("XACT_BLOCKS_OF_1", BLOCKS_OF_1),
    ("XACT_BLOCKS_OF_2", BLOCKS_OF_2),
    ("XACT_BLOCKS_OF_3", BLOCKS_OF_3),
    ("XACT_BLOCKS_OF_ROWS", BLOCKS_OF_ROWS),
    ("XACT_FOLDS", FOLDS),
    ("XACT_MAX_CHUNKS", MAX_CHUNKS),
    ("XACT_MAX_CLUSTER", MAX_CLUSTER),
    ("XACT_PACKS", PACKS),
    ("XACT_ROW_PACKS", ROW_PACKS),
];

/// How a tensor is divided into packs and tiles, and tiles into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // unused by build.rs, which includes this file
pub struct Tiling {
    /// The number of packs (vectors) that a row has, or the most that one has if the rows begin differently.
    pub packs_per_row: u64,
    /// The factor of the division of a pack's number by `packs_per_row`: ⌊(2⁶⁴ − 1)/`packs_per_row`⌋.
    pub row_factor: u64,
    /// The number of tiles (`BLOCK · PACKS` packs) of the tensor; 0 if it has no elements.
    pub tiles: u64,
}

/// How tiles are divided into the chunks of a backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // unused by build.rs, which includes this file
pub struct Chunks {
    /// The number of chunks.
    pub chunks: u64,
    /// The number of consecutive tiles of one chunk.
    pub tiles_per_chunk: u32,
    /// The number of chunks that have a tile more. These are the first, so that the last blocks to run are the short ones.
    pub long_chunks: u32,
}

#[allow(dead_code)] // unused by build.rs, which includes this file
impl Tiling {
    /// Divides a `[rows, cols]` tensor with elements of `element_bytes`. No row begins more than `skew` elements past a
    /// vector boundary, and all begin so if `skew` is less than the elements of a vector less one. Returns `None` if the
    /// number of bytes does not fit into 63 bits, or that of a chunk's tiles into 31.
    pub fn new(rows: u64, cols: u64, element_bytes: u64, skew: u64) -> Option<Tiling> {
        if rows == 0 || cols == 0 {
            return Some(Tiling {
                packs_per_row: 0,
                row_factor: 0,
                tiles: 0,
            });
        }
        let per_pack = VECTOR_BYTES / element_bytes;
        rows.checked_mul(cols)?
            .checked_mul(element_bytes)
            .filter(|&bytes| i64::try_from(bytes).is_ok())?;
        let packs_per_row = (cols + skew).div_ceil(per_pack);
        let tiles = rows.checked_mul(packs_per_row)?.div_ceil(BLOCK * PACKS);
        (tiles / MAX_CHUNKS < 1 << 31).then_some(Tiling {
            packs_per_row,
            row_factor: u64::MAX / packs_per_row,
            tiles,
        })
    }

    /// The most elements that a row can begin past a vector boundary.
    pub fn most_skew(element_bytes: u64) -> u64 {
        VECTOR_BYTES / element_bytes - 1
    }

    /// The chunks of a backward. Their number never decreases with the number of tiles.
    pub fn chunks(&self) -> Chunks {
        let chunks = self.tiles.min(MAX_CHUNKS);
        // Both fit: `new` has checked the quotient, and there are few chunks.
        Chunks {
            chunks,
            tiles_per_chunk: self.tiles.checked_div(chunks).unwrap_or(0) as u32,
            long_chunks: self.tiles.checked_rem(chunks).unwrap_or(0) as u32,
        }
    }
}

#[allow(dead_code)] // unused by build.rs, which includes this file
impl Chunks {
    /// The number of blocks of the second stage for each parameter. A block takes at least [`BLOCK`] chunks.
    pub fn folds(&self) -> u64 {
        self.chunks.div_ceil(BLOCK).clamp(1, FOLDS)
    }
}

/// How the rows of a matrix of logits are split into parts, one for each block. It depends on the shape alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // unused by build.rs, which includes this file
pub struct RowSplit {
    /// The number of parts of a row.
    pub splits: u64,
    /// The number of packs of a part. The last part may have fewer.
    pub packs_per_split: u64,
}

#[allow(dead_code)] // unused by build.rs, which includes this file
impl RowSplit {
    /// Splits `rows` rows of `cols` elements into at most [`SPLIT_BLOCKS`] parts in all; more rows than that are not split.
    /// Up to [`MAX_CLUSTER`] parts of a row are a power of two, so that they fill a cluster.
    pub fn new(rows: u64, cols: u64, element_bytes: u64) -> RowSplit {
        // A step of a block is one pack per thread.
        let steps = (Self::row_bytes(cols, element_bytes) / VECTOR_BYTES).div_ceil(BLOCK);
        let wanted = (SPLIT_BLOCKS / rows.max(1)).clamp(1, steps.max(1));
        if wanted <= MAX_CLUSTER {
            Self::of_parts(steps, 1 << wanted.ilog2())
        } else {
            Self::of_parts(steps, wanted)
        }
    }

    /// Splits a row of `steps` steps into at most `parts` parts.
    fn of_parts(steps: u64, parts: u64) -> RowSplit {
        let steps_per_split = steps.div_ceil(parts).max(1);
        RowSplit {
            splits: steps.div_ceil(steps_per_split).max(1),
            packs_per_split: steps_per_split * BLOCK,
        }
    }

    /// How a cluster of at most `most` blocks shares a row of `row_bytes` bytes (see [`RowSplit::row_bytes`]), each block
    /// keeping one part in `room` bytes of shared memory. Returns `None` if the row does not fit, or needs one block only.
    ///
    /// Where the parts of this split fit, they are used, and the results have the same bits as those of the other kernels;
    /// otherwise the row is split into the fewest parts that fit. With `least`, a cluster has at least so many blocks, but
    /// never more than `most`.
    ///
    /// A row with more parts than `most` gets no cluster. Such rows are so few that the second read finds them in the L2
    /// cache (at most 113 rows, 28 MiB of 131,072 16-bit logits), and more parts keep more of the device busy.
    pub fn of_cluster(
        self,
        row_bytes: u64,
        room: u64,
        most: u64,
        least: Option<u64>,
    ) -> Option<RowSplit> {
        let steps = (row_bytes / VECTOR_BYTES).div_ceil(BLOCK);
        let fewest = steps.div_ceil((room / (BLOCK * VECTOR_BYTES)).max(1));
        let split = match least {
            Some(least) => Self::of_parts(steps, fewest.max(least.min(most)).next_power_of_two()),
            None if self.part_bytes() <= room => self,
            None => Self::of_parts(steps, fewest.next_power_of_two()),
        };
        let fits = split.part_bytes() <= room && split.cluster_blocks() <= most;
        (fits && split.splits > 1).then_some(split)
    }

    /// The number of blocks of the cluster that takes these parts. The last blocks may have no part.
    pub fn cluster_blocks(self) -> u64 {
        self.splits.next_power_of_two()
    }

    /// The number of bytes of a part.
    pub fn part_bytes(self) -> u64 {
        self.packs_per_split * VECTOR_BYTES
    }

    /// The number of bytes of the packs that hold a row of any alignment.
    pub fn row_bytes(cols: u64, element_bytes: u64) -> u64 {
        let per_pack = VECTOR_BYTES / element_bytes;
        // A row may begin up to `per_pack - 1` elements past a vector boundary.
        cols.saturating_add(per_pack - 1).div_ceil(per_pack) * VECTOR_BYTES
    }
}

/// How rows are divided into the chunks over which losses are summed. It depends on the number of rows alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // unused by build.rs, which includes this file
pub struct RowChunks {
    /// The number of rows of a chunk. The last chunk may have fewer.
    pub rows_per_chunk: u64,
    /// The number of chunks, at most [`MAX_ROW_CHUNKS`].
    pub chunks: u64,
    /// An upper bound on `chunks` that never decreases with more rows.
    pub chunks_bound: u64,
}

#[allow(dead_code)] // unused by build.rs, which includes this file
impl RowChunks {
    /// Divides `rows` rows into chunks.
    pub fn new(rows: u64) -> RowChunks {
        let rows_per_chunk = BLOCK * rows.div_ceil(BLOCK * MAX_ROW_CHUNKS).max(1);
        RowChunks {
            rows_per_chunk,
            chunks: rows.div_ceil(rows_per_chunk),
            chunks_bound: rows.div_ceil(BLOCK).min(MAX_ROW_CHUNKS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_logits_are_covered_and_few_long_ones_use_many_blocks() {
        for bytes in [2, 4] {
            for rows in [0, 1, 2, 3, 500, 513, 1024, 5000] {
                for cols in [0, 1, 7, 2048, 2049, 50257, 131_072, 262_144] {
                    let split = RowSplit::new(rows, cols, bytes);
                    let packs = RowSplit::row_bytes(cols, bytes) / VECTOR_BYTES;
                    assert!(split.splits * split.packs_per_split >= packs);
                    assert!((split.splits - 1) * split.packs_per_split < packs.max(1));
                    assert!(rows * split.splits <= SPLIT_BLOCKS.max(rows));
                }
            }
        }
        assert_eq!(RowSplit::new(1, 262_144, 2).splits, 129);
        assert_eq!(RowSplit::new(16_384, 131_072, 2).splits, 1);
    }

    #[test]
    fn a_cluster_keeps_the_whole_row() {
        // What the tests of the launches find on an H100: 3 blocks of 74 KiB.
        const ROOM: u64 = 74 << 10;
        let parts_of = |most, rows, cols, bytes| {
            let split = RowSplit::new(rows, cols, bytes);
            let row_bytes = RowSplit::row_bytes(cols, bytes);
            let shared = split.of_cluster(row_bytes, ROOM, most, None);
            if let Some(shared) = shared {
                assert!((2..=most).contains(&shared.cluster_blocks()));
                assert!(shared.splits * shared.part_bytes() >= row_bytes);
                assert!(shared.part_bytes() <= ROOM);
                assert!(split.splits == 1 || split == shared || split.part_bytes() > ROOM);
            }
            shared.map(|split| split.splits)
        };
        let parts = |rows, cols, bytes| parts_of(MAX_CLUSTER, rows, cols, bytes);
        for bytes in [2, 4] {
            for rows in [1, 2, 100, 127, 128, 129, 300, 512, 513, 8192] {
                for cols in (1..700_000).step_by(1_777) {
                    for most in [1, 2, 4, 8] {
                        parts_of(most, rows, cols, bytes);
                    }
                }
            }
        }
        // A device that does not run clusters of 8, or none at all.
        assert_eq!(parts_of(4, 8192, 128_256, 2), Some(4));
        assert_eq!(parts_of(4, 8192, 152_064, 2), None);
        assert_eq!(parts_of(4, 3, 5_000, 4), Some(3));
        assert_eq!(parts_of(2, 3, 5_000, 4), None);
        assert_eq!(parts_of(1, 8192, 37_900, 2), None);
        // Many rows: as few parts as fit, from one on, which needs no cluster.
        for (cols, want) in [
            (36_000, None),
            (37_900, Some(2)),
            (128_256, Some(4)),
            (152_064, Some(8)),
        ] {
            assert_eq!(parts(8192, cols, 2), want, "{cols}");
        }
        assert_eq!(parts(8192, 131_072, 4), Some(8));
        assert_eq!(parts(8192, 262_144, 4), None);
        // Fewer: the parts that they have anyway, if a cluster takes as many.
        assert_eq!(parts(512, 131_072, 2), Some(4));
        assert_eq!(parts(200, 131_072, 2), Some(4));
        assert_eq!(parts(128, 131_072, 2), Some(8));
        assert_eq!(parts(64, 131_072, 2), None);
        assert_eq!(parts(3, 5_000, 4), Some(3));
        assert_eq!(parts(3, 7, 2), None);
        // More blocks than needed, but no more than there are.
        let row_bytes = RowSplit::row_bytes(128_256, 2);
        let split = RowSplit::new(8192, 128_256, 2);
        let with_least = |most, least| {
            let shared = split.of_cluster(row_bytes, ROOM, most, Some(least));
            shared.map(|split| split.cluster_blocks())
        };
        for (most, least, want) in [
            (8, 1, Some(4)),
            (8, 5, Some(8)),
            (8, 100, Some(8)),
            (4, 8, Some(4)),
            (2, 8, None),
        ] {
            assert_eq!(with_least(most, least), want, "{most} {least}");
        }
    }

    #[test]
    fn chunks_of_rows_cover_them() {
        let mut last = 0;
        for rows in [0, 1, 255, 256, 257, 1 << 20, (1 << 20) + 1, 5_000_000] {
            let RowChunks {
                rows_per_chunk,
                chunks,
                chunks_bound,
            } = RowChunks::new(rows);
            assert!(chunks * rows_per_chunk >= rows);
            assert!(chunks == 0 || (chunks - 1) * rows_per_chunk < rows);
            assert!(chunks <= chunks_bound && last <= chunks_bound);
            last = chunks_bound;
        }
    }

    #[test]
    fn tiles_cover_all_packs_and_chunks_all_tiles() {
        for bytes in [2, 4] {
            for rows in [1, 2, 3, 1000, 5000] {
                for cols in [1, 7, 8, 9, 4095, 4096, 4097, 100_000, 50_000_000] {
                    for skew in [0, 1, Tiling::most_skew(bytes)] {
                        let tiling = Tiling::new(rows, cols, bytes, skew).unwrap();
                        let elements = tiling.packs_per_row * VECTOR_BYTES / bytes;
                        assert!(
                            (cols + skew..cols + skew + VECTOR_BYTES / bytes).contains(&elements)
                        );
                        let packs = rows * tiling.packs_per_row;
                        assert!(tiling.tiles * BLOCK * PACKS >= packs);
                        assert!((tiling.tiles - 1) * BLOCK * PACKS < packs);
                        let chunks = tiling.chunks();
                        assert!(chunks.chunks <= MAX_CHUNKS);
                        assert!(u64::from(chunks.long_chunks) < chunks.chunks);
                        let of_all = chunks.chunks * u64::from(chunks.tiles_per_chunk);
                        let tiles = of_all + u64::from(chunks.long_chunks);
                        assert_eq!(tiles, tiling.tiles);
                        assert!(chunks.folds() * BLOCK * 8 >= chunks.chunks);
                    }
                }
            }
        }
    }

    /// The division of `kernels/common/map.cuh`.
    #[test]
    fn a_pack_finds_its_row() {
        for per_row in [1, 2, 3, 7, 513, 1000, (1 << 20) + 1, (1 << 32) - 1, 1 << 40] {
            let factor = u64::MAX / per_row;
            for row in [0, 1, 2, 999, (1 << 20) - 1] {
                for pack in [0, 1, per_row / 2, per_row - 1] {
                    let pack = row * per_row + pack.min(per_row - 1);
                    let product = u128::from(pack) * u128::from(factor);
                    let mut quotient = (product >> 64) as u64;
                    assert!(quotient == row || quotient + 1 == row, "{pack} / {per_row}");
                    if pack - quotient * per_row >= per_row {
                        quotient += 1;
                    }
                    assert_eq!(quotient, row, "{pack} / {per_row}");
                }
            }
        }
    }

    /// A block that is done takes the next chunk. The time of the whole, beside the time of blocks that are all busy.
    fn tail(tiling: Tiling, blocks: u64) -> f64 {
        let Chunks {
            chunks,
            tiles_per_chunk,
            long_chunks,
        } = tiling.chunks();
        let mut done =
            std::collections::BinaryHeap::from(vec![std::cmp::Reverse(0); blocks as usize]);
        let mut last = 0;
        for chunk in 0..chunks {
            let std::cmp::Reverse(start) = done.pop().expect("blocks");
            let is_long = chunk < u64::from(long_chunks);
            let end = start + u64::from(tiles_per_chunk) + u64::from(is_long);
            done.push(std::cmp::Reverse(end));
            last = last.max(end);
        }
        last as f64 * blocks as f64 / tiling.tiles as f64 - 1.0
    }

    #[test]
    fn the_last_wave_of_a_backward_takes_at_most_a_twentieth() {
        for multiprocessors in [132, 148] {
            for of_one in [BLOCKS_OF_3, BLOCKS_OF_2, 4] {
                let blocks = multiprocessors * of_one;
                // Fewer tiles than 20 waves cannot be divided more finely.
                let many = MAX_CHUNKS * 2;
                let counts = (20 * blocks..many).step_by(97).chain([
                    MAX_CHUNKS - 1,
                    MAX_CHUNKS,
                    MAX_CHUNKS + 1,
                    many - 1,
                    many,
                    many + 1,
                    many + 600,
                    5 * MAX_CHUNKS / 2,
                    100_000,
                    1_000_001,
                ]);
                for tiles in counts {
                    let tiling = Tiling::new(1, tiles * BLOCK * PACKS * 8, 2, 0).unwrap();
                    assert_eq!(tiling.tiles, tiles);
                    let tail = tail(tiling, blocks);
                    assert!(tail <= 0.05, "{tiles} tiles on {blocks} blocks: {tail:.3}");
                }
            }
        }
    }

    #[test]
    fn chunks_grow_with_the_tensor() {
        let mut last = 0;
        for cols in (0..200_000_000).step_by(100_011) {
            let chunks = Tiling::new(1, cols, 4, 3).unwrap().chunks().chunks;
            assert!(last <= chunks);
            last = chunks;
        }
        // Rows with a skew have at least as many as the contiguous tensor.
        for (rows, cols) in [(1, 5), (7, 1), (3, 2048), (1000, 9)] {
            let chunks = |tiling: Option<Tiling>| tiling.unwrap().chunks().chunks;
            let dense = chunks(Tiling::new(1, rows * cols, 2, 7));
            assert!(chunks(Tiling::new(rows, cols, 2, 7)) >= dense);
        }
    }

    #[test]
    fn empty_and_huge_shapes() {
        for (rows, cols) in [(0, 5), (5, 0)] {
            let tiling = Tiling::new(rows, cols, 2, 0).unwrap();
            assert_eq!((tiling.tiles, tiling.chunks().chunks), (0, 0));
            assert_eq!(tiling.chunks().folds(), 1);
        }
        assert_eq!(
            Tiling::new(1, 1 << 36, 2, 0).unwrap().chunks().chunks,
            MAX_CHUNKS
        );
        assert_eq!(Tiling::new(u64::MAX, 2, 2, 0), None);
        assert_eq!(Tiling::new(1, u64::MAX / 2, 4, 0), None);
        assert_eq!(Tiling::new(1, 1 << 60, 4, 0), None);
    }
}
