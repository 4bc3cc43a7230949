//! The numbers that shape a launch, and the cut of a tensor into tiles and chunks.
//!
//! The only home of these numbers: `build.rs` includes this file and hands [`DEFINES`] to nvcc. Any
//! values are correct; they only change speed. The cut depends on the shape alone, never on the
//! device, which is what makes the parameter gradients reproducible to the bit.

/// Threads per block.
///
/// 256 divides the 2048 threads of an A100 or H100 SM, and is small enough for several blocks to be
/// resident, so that a block which waits does not idle the SM.
pub const BLOCK: u64 = 256;

/// Blocks that must fit on an SM at once, which caps the registers of a thread: by the number of inputs of
/// a kernel, so that each keeps 32 to 48 KiB in flight. One input, a forward: 64 registers.
pub const BLOCKS_OF_1: u64 = 4;

/// Two inputs, a backward or a gated forward: 80 registers.
pub const BLOCKS_OF_2: u64 = 3;

/// Three inputs, a gated backward: 128 registers, of which it uses nearly all.
pub const BLOCKS_OF_3: u64 = 2;

/// 16-byte vectors that a thread has in flight per input buffer.
///
/// CUB's rule wants 32 KiB in flight per SM on an H100: 2 vectors × 16 bytes × the 1024 threads of
/// [`BLOCKS_OF_1`] blocks.
pub const PACKS: u64 = 2;

/// 16-byte vectors of a row of logits that a thread has in flight.
///
/// With the 768 threads of [`BLOCKS_OF_ROWS`] blocks that is the 48 KiB per SM that an H200 wants; a row of
/// 131,072 16-bit logits is 16 batches of a block.
pub const ROW_PACKS: u64 = 4;

/// Blocks of the row kernels that must fit on an SM at once: 80 registers, of which a batch holds 16.
pub const BLOCKS_OF_ROWS: u64 = 3;

/// Blocks of the largest cluster that CUDA calls portable to every device of compute capability 9.0 and later. One may
/// have room for fewer, and is asked when the kernel is loaded.
pub const MAX_CLUSTER: u64 = 8;

/// Bytes of the widest load and store.
pub const VECTOR_BYTES: u64 = 16;

/// The most chunks a tensor is cut into: one block each, one partial sum per parameter each.
///
/// About four waves of blocks on an H100 (132 SMs × 8 blocks), enough for the hardware's scheduler
/// to even out; and the second stage reads at most 64 KiB, which one block does in a few µs.
pub const MAX_CHUNKS: u64 = 4096;

/// Blocks that rows of logits are cut into if there are fewer rows: about two waves of
/// [`BLOCKS_OF_ROWS`] blocks on the 132 SMs of an H100, enough that one long row uses the device.
#[allow(dead_code)] // unused by build.rs, which includes this file
pub const SPLIT_BLOCKS: u64 = 1024;

/// What the CUDA sources are compiled with.
#[allow(dead_code)] // read by build.rs, which includes this file
pub const DEFINES: [(&str, u64); 8] = [
    ("XACT_BLOCK", BLOCK),
    ("XACT_BLOCKS_OF_1", BLOCKS_OF_1),
    ("XACT_BLOCKS_OF_2", BLOCKS_OF_2),
    ("XACT_BLOCKS_OF_3", BLOCKS_OF_3),
    ("XACT_BLOCKS_OF_ROWS", BLOCKS_OF_ROWS),
    ("XACT_MAX_CLUSTER", MAX_CLUSTER),
    ("XACT_PACKS", PACKS),
    ("XACT_ROW_PACKS", ROW_PACKS),
];

/// How a tensor is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // unused by build.rs, which includes this file
pub struct Cut {
    /// Tiles (`BLOCK · PACKS` vectors) that cover a row, whatever its alignment.
    pub tiles_per_row: u64,
    /// Consecutive tiles of one chunk.
    pub tiles_per_chunk: u64,
    /// Chunks of the whole tensor; 0 if it is empty.
    pub chunks: u64,
    /// At least as many as `chunks`, and as those of every smaller tensor.
    pub chunks_bound: u64,
}

#[allow(dead_code)] // unused by build.rs, which includes this file
impl Cut {
    /// Cuts `rows` rows of `cols` elements of `element_bytes` each; `None` if the element count does
    /// not fit into 63 bits.
    pub fn new(rows: u64, cols: u64, element_bytes: u64) -> Option<Cut> {
        if rows == 0 || cols == 0 {
            return Some(Cut {
                tiles_per_row: 0,
                tiles_per_chunk: 0,
                chunks: 0,
                chunks_bound: 0,
            });
        }
        let per_pack = VECTOR_BYTES / element_bytes;
        rows.checked_mul(cols)?
            .checked_mul(element_bytes)
            .filter(|&bytes| i64::try_from(bytes).is_ok())?;
        // A row may begin up to `per_pack - 1` elements past a vector boundary.
        let packs_per_row = (cols + per_pack - 1).div_ceil(per_pack);
        let tiles_per_row = packs_per_row.div_ceil(BLOCK * PACKS);
        let tiles = rows.checked_mul(tiles_per_row)?;
        let tiles_per_chunk = tiles.div_ceil(MAX_CHUNKS);
        Some(Cut {
            tiles_per_row,
            tiles_per_chunk,
            chunks: tiles.div_ceil(tiles_per_chunk),
            chunks_bound: tiles.min(MAX_CHUNKS),
        })
    }
}

/// How the rows of a matrix of logits are cut into the parts of blocks: by the shape alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // unused by build.rs, which includes this file
pub struct RowCut {
    /// Parts of a row.
    pub splits: u64,
    /// Packs of all parts but the last, which may have fewer.
    pub packs_per_split: u64,
}

#[allow(dead_code)] // unused by build.rs, which includes this file
impl RowCut {
    /// Cuts `rows` rows of `cols` elements: at most [`SPLIT_BLOCKS`] parts in all, unless there are more rows. Few
    /// parts are made to fill a cluster, whose size is a power of two.
    pub fn new(rows: u64, cols: u64, element_bytes: u64) -> RowCut {
        // A step of a block is one pack per thread.
        let steps = (Self::row_bytes(cols, element_bytes) / VECTOR_BYTES).div_ceil(BLOCK);
        let wanted = (SPLIT_BLOCKS / rows.max(1)).clamp(1, steps.max(1));
        if wanted <= MAX_CLUSTER {
            Self::of_parts(steps, 1 << wanted.ilog2())
        } else {
            Self::of_parts(steps, wanted)
        }
    }

    /// Cuts a row of so many steps into at most so many parts.
    fn of_parts(steps: u64, parts: u64) -> RowCut {
        let steps_per_split = steps.div_ceil(parts).max(1);
        RowCut {
            splits: steps.div_ceil(steps_per_split).max(1),
            packs_per_split: steps_per_split * BLOCK,
        }
    }

    /// How a cluster of at most `most` blocks shares a row of so many bytes (see [`RowCut::row_bytes`]), if it does:
    /// each block keeps a part in `room` bytes. The parts are those of this cut where they fit, and then the results have the same bits as
    /// those of other kernels; else the fewest that fit. With `least`, a cluster has at least so many blocks, as far as it may.
    ///
    /// More parts than a cluster has blocks are not merged into fewer: the rows are so few that the second read finds
    /// them in the L2 cache (at most 113 rows, 28 MiB of 131,072 16-bit logits), and their parts keep more of the
    /// device busy.
    pub fn of_cluster(
        self,
        row_bytes: u64,
        room: u64,
        most: u64,
        least: Option<u64>,
    ) -> Option<RowCut> {
        let steps = (row_bytes / VECTOR_BYTES).div_ceil(BLOCK);
        let fewest = steps.div_ceil((room / (BLOCK * VECTOR_BYTES)).max(1));
        let cut = match least {
            Some(least) => Self::of_parts(steps, fewest.max(least.min(most)).next_power_of_two()),
            None if self.part_bytes() <= room => self,
            None => Self::of_parts(steps, fewest.next_power_of_two()),
        };
        let fits = cut.part_bytes() <= room && cut.cluster_blocks() <= most;
        (fits && cut.splits > 1).then_some(cut)
    }

    /// Blocks of the cluster that takes these parts; the last may have none.
    pub fn cluster_blocks(self) -> u64 {
        self.splits.next_power_of_two()
    }

    /// Bytes of a part.
    pub fn part_bytes(self) -> u64 {
        self.packs_per_split * VECTOR_BYTES
    }

    /// Bytes of the packs that hold a row, whatever its alignment.
    pub fn row_bytes(cols: u64, element_bytes: u64) -> u64 {
        let per_pack = VECTOR_BYTES / element_bytes;
        // A row may begin up to `per_pack - 1` elements past a vector boundary.
        cols.saturating_add(per_pack - 1).div_ceil(per_pack) * VECTOR_BYTES
    }
}

/// How rows are cut into the chunks whose sums are taken together: by their number alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code)] // unused by build.rs, which includes this file
pub struct RowChunks {
    /// Rows of all chunks but the last, which may have fewer.
    pub rows_per_chunk: u64,
    /// At most [`MAX_CHUNKS`].
    pub chunks: u64,
    /// At least as many as `chunks`, and as those of fewer rows.
    pub chunks_bound: u64,
}

#[allow(dead_code)] // unused by build.rs, which includes this file
impl RowChunks {
    /// Cuts `rows` rows.
    pub fn new(rows: u64) -> RowChunks {
        let rows_per_chunk = BLOCK * rows.div_ceil(BLOCK * MAX_CHUNKS).max(1);
        RowChunks {
            rows_per_chunk,
            chunks: rows.div_ceil(rows_per_chunk),
            chunks_bound: rows.div_ceil(BLOCK).min(MAX_CHUNKS),
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
                    let cut = RowCut::new(rows, cols, bytes);
                    let packs = RowCut::row_bytes(cols, bytes) / VECTOR_BYTES;
                    assert!(cut.splits * cut.packs_per_split >= packs);
                    assert!((cut.splits - 1) * cut.packs_per_split < packs.max(1));
                    assert!(rows * cut.splits <= SPLIT_BLOCKS.max(rows));
                }
            }
        }
        assert_eq!(RowCut::new(1, 262_144, 2).splits, 129);
        assert_eq!(RowCut::new(16_384, 131_072, 2).splits, 1);
    }

    #[test]
    fn a_cluster_keeps_the_whole_row() {
        // What the tests of the launches find on an H100: 3 blocks of 74 KiB.
        const ROOM: u64 = 74 << 10;
        let parts_of = |most, rows, cols, bytes| {
            let cut = RowCut::new(rows, cols, bytes);
            let row_bytes = RowCut::row_bytes(cols, bytes);
            let shared = cut.of_cluster(row_bytes, ROOM, most, None);
            if let Some(shared) = shared {
                assert!((2..=most).contains(&shared.cluster_blocks()));
                assert!(shared.splits * shared.part_bytes() >= row_bytes);
                assert!(shared.part_bytes() <= ROOM);
                assert!(cut.splits == 1 || cut == shared || cut.part_bytes() > ROOM);
            }
            shared.map(|cut| cut.splits)
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
        let row_bytes = RowCut::row_bytes(128_256, 2);
        let cut = RowCut::new(8192, 128_256, 2);
        let with_least = |most, least| {
            let shared = cut.of_cluster(row_bytes, ROOM, most, Some(least));
            shared.map(|cut| cut.cluster_blocks())
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
    fn a_cut_covers_every_tile_exactly_once() {
        for bytes in [2, 4] {
            for rows in [1, 2, 3, 1000, 5000] {
                for cols in [1, 7, 8, 9, 4095, 4096, 4097, 100_000, 50_000_000] {
                    let cut = Cut::new(rows, cols, bytes).unwrap();
                    let tiles = rows * cut.tiles_per_row;
                    assert!(cut.chunks <= MAX_CHUNKS);
                    assert!(cut.chunks * cut.tiles_per_chunk >= tiles);
                    assert!((cut.chunks - 1) * cut.tiles_per_chunk < tiles);
                    let worst_skew = VECTOR_BYTES / bytes - 1;
                    let tile_elements = BLOCK * PACKS * VECTOR_BYTES / bytes;
                    assert!(cut.tiles_per_row * tile_elements >= cols + worst_skew);
                }
            }
        }
    }

    #[test]
    fn the_bound_grows_with_the_tensor() {
        let mut last = 0;
        for cols in (0..60_000_000).step_by(30_011) {
            let cut = Cut::new(1, cols, 4).unwrap();
            assert!(cut.chunks <= cut.chunks_bound && last <= cut.chunks_bound);
            last = cut.chunks_bound;
        }
    }

    #[test]
    fn empty_and_huge_shapes() {
        assert_eq!(Cut::new(0, 5, 2).unwrap().chunks, 0);
        assert_eq!(Cut::new(5, 0, 2).unwrap().chunks, 0);
        assert!(Cut::new(1, 1 << 36, 2).unwrap().chunks <= MAX_CHUNKS);
        assert_eq!(Cut::new(u64::MAX, 2, 2), None);
        assert_eq!(Cut::new(1, u64::MAX / 2, 4), None);
    }
}
