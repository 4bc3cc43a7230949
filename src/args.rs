// The parameter blocks of the kernels, declared once. `src/blocks.rs` expands this file into Rust structs, and `build.rs`
// into the C++ structs of the generated header args.cuh. Both lay the fields out by the C rules. The numbers that both
// sides name stand at the end.

kernel_args! {
    /// A `[rows, cols]` matrix in device memory. The call gives `rows`, `cols` and the element type.
    Matrix {
        /// The address of the first element, a multiple of the element size.
        pub ptr: u64,
        /// The row pitch: elements from the start of one row to the start of the next, at least `cols`. A contiguous
        /// tensor has `pitch == cols`; each half of a `[rows, 2·cols]` tensor has `pitch == 2·cols`.
        pub pitch: u64,
    }

    /// A `[rows, cols]` matrix of logits in device memory, whose rows may be in groups. The view `logits[:, :-1]` of a
    /// `[B, S, V]` tensor, for example, is B groups of S − 1 rows, and the groups are S·V elements apart. The call gives
    /// `rows`, `cols` and the element type.
    LogitsMatrix {
        /// The address of the first element, a multiple of the element size.
        pub ptr: u64,
        /// The row pitch: elements from the start of one row to the start of the next in the same group, at least `cols`.
        pub pitch: u64,
        /// The number of rows of a group, which divides `rows`. 0 if there are no groups.
        pub group_rows: u64,
        /// Elements from the start of one group to the start of the next. Not used if there are no groups.
        pub group_pitch: u64,
    }

    /// The parameters of every kernel entry of an activation. Addresses are device addresses, and an output whose address
    /// is 0 is not written. `src/geometry.rs` computes the tiles and chunks (`Tiling`, `Chunks`).
    ActivationArgs {
        pub(crate) x: Matrix,
        /// The second input of a gated form.
        pub(crate) v: Matrix,
        pub(crate) dy: Matrix,
        pub(crate) y: Matrix,
        pub(crate) dx: Matrix,
        pub(crate) dv: Matrix,
        pub(crate) rows: u64,
        pub(crate) cols: u64,
        pub(crate) packs_per_row: u64,
        pub(crate) row_factor: u64,
        pub(crate) chunks: u64,
        /// Pairs (sum, compensation) of f32 for each parameter: one of each chunk and, if the second stage has several
        /// blocks, one of each of them, and a counter of those that are done in place of a pair.
        pub(crate) partials: u64,
        pub(crate) params: [u64; 3],
        /// One f32 each.
        pub(crate) dparams: [u64; 3],
        pub(crate) tiles_per_chunk: u32,
        pub(crate) long_chunks: u32,
        /// The number of blocks of the second stage for each parameter.
        pub(crate) folds: u32,
        /// 1: every pack is aligned to 16 bytes in all buffers, and no columns alternate.
        pub(crate) aligned: u32,
        /// 1: the parameters are f32; 0: they are of the type of x.
        pub(crate) params_are_f32: u32,
        /// 1: add to dparams; 0: overwrite them.
        pub(crate) accumulate: u32,
        /// xIELU: 1: the parameters pass through a softplus; 0: they are used as they are.
        pub(crate) raw_params: u32,
        /// xIELU: 1: `EpsGradient::Autograd`; 0: `EpsGradient::Analytic`.
        pub(crate) autograd: u32,
        /// xIELU: β, used if β is not among the parameters.
        pub(crate) beta: f32,
        /// xIELU: the bound of the clamp; +inf if there is no clamp.
        pub(crate) eps: f32,
        /// 0: x and v are matrices of their own. -B: their columns alternate in blocks of B, in rows of 2·cols elements. x and
        /// v point to their first blocks; with B = 1, to the first and the second vector of 16 bytes.
        pub(crate) xv_blocks: i64,
        /// The same for dx and dv.
        pub(crate) dxv_blocks: i64,
        /// 1: v is first. Read only where x and v alternate one by one.
        pub(crate) v_first: u32,
        /// The same for dx and dv.
        pub(crate) dv_first: u32,
    }

    /// The Goldfish decision: which labels are dropped. `src/cuda/raw/goldfish.rs` fills this in, and
    /// `kernels/loss/goldfish.cuh` reads it.
    GoldfishArgs {
        /// One id for each label.
        pub(crate) ids: u64,
        /// `[segments, halo_len]`: the ids before the first label of each segment, of the type of `ids`.
        pub(crate) halo: u64,
        pub(crate) halo_len: u64,
        /// The number of labels of a segment: those of a row, or all labels where there are documents or chunks.
        pub(crate) len: u64,
        /// `[offsets] i32`; 0 if there are neither documents nor chunks.
        pub(crate) cu_seqlens: u64,
        pub(crate) offsets: u64,
        /// `[offsets - 1] i64`: the number of labels that precede each chunk in its document; 0 if there are no chunks.
        pub(crate) preceding: u64,
        /// The number of rows of text that are interleaved, and the number of labels of each.
        pub(crate) interleaved: u64,
        pub(crate) interleaved_len: u64,
        /// `[exempts] i64`: the ids that are never dropped.
        pub(crate) exempt: u64,
        pub(crate) exempts: u64,
        /// Static: the first position that is dropped.
        pub(crate) start: u64,
        /// Random and Hash64: `mix(seed)`.
        pub(crate) seed: u64,
        /// Random, ProductAvalanche and Hash64: a label is dropped if its hash is below this threshold.
        pub(crate) cut: u64,
        /// ProductTable and DotTable: GOLDFISH_TABLE_LEN bits in u32 words, lowest bit first. A 1 drops the label.
        pub(crate) bitmap: u64,
        /// DotTable: `[h] u64`, the factor of the oldest id first.
        pub(crate) coefficients: u64,
        /// One of the constants `GOLDFISH_*`.
        pub(crate) strategy: u32,
        /// One of the constants `ID_*`: the type of the ids and of the halo.
        pub(crate) id_type: u32,
        /// Static: the period.
        pub(crate) k: u32,
        /// The number of ids in a window.
        pub(crate) h: u32,
        /// Hash64: `places[j]` is added to the id at distance j from the label. For longer distances the kernel computes
        /// the addend.
        pub(crate) places: [u64; 32],
    }

    /// The parameters of the kernel entries of goldfish. An output whose address is 0 is not written.
    GoldfishMaskArgs {
        pub(crate) goldfish: GoldfishArgs,
        pub(crate) labels: u64,
        /// `[labels] u8`: 1 for kept, 0 for dropped.
        pub(crate) keep: u64,
        /// `[labels] f32`: 1 for kept, 0 for dropped.
        pub(crate) weights: u64,
        /// `[blocks] u64`: the number of labels that each block dropped.
        pub(crate) partials: u64,
        /// The number of blocks of the mask kernel.
        pub(crate) blocks: u64,
        /// `[2] u64`: the number of kept labels and the number of dropped labels.
        pub(crate) counts: u64,
    }

    /// Softmax statistics of a part of a row of logits: the columns of one block or of one rank. 20 bytes.
    #[non_exhaustive]
    RowStats {
        /// The largest logit, before the softcap; -inf if the part has no columns.
        pub max: f32,
        /// Σ e^z over the softcapped logits except the target's, divided by the power of two that belongs to
        /// `max` (kernels/common/softmax.cuh).
        pub rest: f32,
        /// The logit of the target, before the softcap; -inf if the target is in another part.
        pub target: f32,
        /// Σ z over the softcapped logits if there is label smoothing; otherwise 0.
        pub sum: f32,
        /// The class of the largest logit (the first of equal ones) if the argmax is asked for; otherwise `u32::MAX`.
        pub argmax: u32,
    }

    /// The totals of a cross-entropy call over all rows.
    #[non_exhaustive]
    CrossEntropySummary {
        /// The sum of the losses of the kept rows.
        pub loss: f32,
        /// `loss / normalizer`. If no row is kept it is 0, or NaN with the option `empty_is_nan`.
        pub mean: f32,
        /// The part of `loss` that is z-loss.
        pub z_loss: f32,
        /// The sum of the weights of the kept rows.
        pub weight: f32,
        /// The normaliser: the number by which the mean loss and the gradients are divided.
        pub normalizer: f32,
        /// The sum of the losses of the rows that Goldfish dropped, with the option `dropped_loss`; otherwise 0.
        pub dropped_loss: f32,
        /// The number of rows whose label is not `ignore_index`, including rows of weight 0 and dropped rows.
        pub labels: u64,
        /// The number of kept rows: their label is not `ignore_index`, their weight is not 0, Goldfish does not drop them.
        pub kept: u64,
        /// The number of rows that Goldfish drops and that would otherwise be kept.
        pub dropped: u64,
        /// The number of kept rows whose label is the argmax, if the argmax is asked for; otherwise 0.
        pub correct: u64,
        /// The first row whose label is not a class; `u64::MAX` if there is none.
        pub bad_row: u64,
        /// The first kept row whose label is a class and whose loss is NaN; `u64::MAX` if there is none. The cause is a NaN
        /// or +inf among its logits or in its weight, or a row with only −inf.
        pub nan_row: u64,
    }

    /// The totals of a chunk of rows. A sum is a pair (sum, compensation).
    CrossEntropyTotals {
        pub(crate) loss: [f32; 2],
        pub(crate) z_loss: [f32; 2],
        pub(crate) weight: [f32; 2],
        pub(crate) dropped_loss: [f32; 2],
        pub(crate) labels: u64,
        pub(crate) kept: u64,
        pub(crate) dropped: u64,
        pub(crate) correct: u64,
        pub(crate) bad_row: u64,
        pub(crate) nan_row: u64,
    }

    /// The parameters of every kernel entry of cross-entropy. Addresses are device addresses; 0 means that the buffer is
    /// absent.
    CrossEntropyArgs {
        pub(crate) logits: LogitsMatrix,
        pub(crate) dlogits: LogitsMatrix,
        pub(crate) rows: u64,
        /// The number of columns that are classes.
        pub(crate) cols: u64,
        /// The number of columns of dlogits. Those from `cols` on are written as 0.
        pub(crate) padded_cols: u64,
        /// The number of parts of a row, each of which one block reads.
        pub(crate) splits: u64,
        pub(crate) packs_per_split: u64,
        /// The class of column 0.
        pub(crate) first_class: u64,
        /// The number of classes of all ranks.
        pub(crate) classes: u64,
        pub(crate) labels: u64,
        pub(crate) ignore_index: i64,
        /// `[rows] f32`.
        pub(crate) weights: u64,
        /// f32 upstream gradients, `dloss_stride` elements apart.
        pub(crate) dloss: u64,
        pub(crate) dloss_stride: i64,
        /// `[1] f32`: the number by which gradients are divided.
        pub(crate) normalizer: u64,
        /// `[part_count, rows] RowStats`, an input that is merged to one RowStats per row.
        pub(crate) parts: u64,
        pub(crate) part_count: u64,
        /// An output: `[splits, rows] RowStats` or, after merging, `[rows] RowStats`.
        pub(crate) stats: u64,
        /// `[rows] f32`, as are `z_loss_out` and `lse`.
        pub(crate) loss: u64,
        pub(crate) z_loss_out: u64,
        pub(crate) lse: u64,
        /// `[rows] i32`.
        pub(crate) argmax: u64,
        pub(crate) rows_per_chunk: u64,
        pub(crate) chunks: u64,
        /// `[chunks] CrossEntropyTotals`.
        pub(crate) totals: u64,
        /// A u32 counter, which the kernel that reads the logits sets to 0. `finish` counts the finished chunks in it, and
        /// the block that finishes the last chunk adds up all of them. If the counter is absent and there is more than one
        /// chunk, the entry `totals` adds them up.
        pub(crate) chunks_done: u64,
        /// `[1] CrossEntropySummary`.
        pub(crate) summary: u64,
        pub(crate) label_smoothing: f32,
        pub(crate) z_loss: f32,
        /// 0 if there is no softcap.
        pub(crate) softcap: f32,
        /// ID_I32, ID_I64 or ID_U32.
        pub(crate) label_type: u32,
        /// 1: the argmax is computed.
        pub(crate) with_argmax: u32,
        /// 1: the loss of dropped rows is computed too.
        pub(crate) with_dropped: u32,
        /// 1: a row of logits fits into the dynamic shared memory.
        pub(crate) on_chip: u32,
        /// One of the constants `NORMALIZE_BY_*`.
        pub(crate) normalize_by: u32,
        /// 1: the mean over no rows is NaN instead of 0.
        pub(crate) empty_is_nan: u32,
        pub(crate) goldfish: GoldfishArgs,
    }
}

kernel_numbers! {
    /// The values of `GoldfishArgs::strategy`.
    GOLDFISH_NONE = 0,
    GOLDFISH_STATIC = 1,
    GOLDFISH_RANDOM = 2,
    GOLDFISH_PRODUCT_TABLE = 3,
    GOLDFISH_PRODUCT_AVALANCHE = 4,
    GOLDFISH_DOT_TABLE = 5,
    GOLDFISH_HASH64 = 6,
    /// The number of entries of a Goldfish table.
    GOLDFISH_TABLE_LEN = 1000003,
    /// The types of ids and labels.
    ID_I32 = 0,
    ID_I64 = 1,
    ID_U32 = 2,
    ID_U16 = 3,
    ID_U8 = 4,
    /// The values of `CrossEntropyArgs::normalize_by`, which name the normaliser. This one: 1.
    NORMALIZE_BY_NONE = 0,
    /// The number of kept rows.
    NORMALIZE_BY_KEPT = 1,
    /// The sum of the weights of the kept rows.
    NORMALIZE_BY_WEIGHT = 2,
    /// The scalar at `CrossEntropyArgs::normalizer`.
    NORMALIZE_BY_EXTERNAL = 3,
    /// The number of rows whose label is not `ignore_index`.
    NORMALIZE_BY_LABELS = 4,
}
