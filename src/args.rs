// The parameter blocks that kernels take, declared once. `src/blocks.rs` expands this into Rust structs,
// `build.rs` into the C++ structs of the generated header args.cuh; fields are laid out by the C rules
// in both. Numbers that both sides name follow.

kernel_args! {
    /// A matrix in device memory, of the call's `rows` × `cols` elements.
    Matrix {
        /// Address of its first element; a multiple of the element size.
        pub ptr: u64,
        /// Elements from the start of one row to the start of the next, at least `cols`. A tensor
        /// without gaps has `pitch == cols`; the halves of a `[rows, 2·cols]` tensor have
        /// `pitch == 2·cols`.
        pub pitch: u64,
    }

    /// Rows of logits in device memory, of the call's columns each. They may come in groups, as those of the view
    /// `logits[:, :-1]` of a `[B, S, V]` tensor do: B groups of S − 1 rows, S·V elements apart.
    LogitsMatrix {
        /// Address of the first element; a multiple of the element size.
        pub ptr: u64,
        /// Elements from the start of one row to the start of the next of its group, at least the columns.
        pub pitch: u64,
        /// Rows of a group, of which the number of rows is a multiple; 0: all rows are one group.
        pub group_rows: u64,
        /// Elements from the start of one group to the start of the next; not used without groups.
        pub group_pitch: u64,
    }

    /// What the entries of an activation take. Addresses are of the device; an output whose address is 0
    /// is not written; the cut is `Cut` of `src/geometry.rs`.
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
        pub(crate) tiles_per_row: u64,
        pub(crate) tiles_per_chunk: u64,
        pub(crate) chunks: u64,
        /// (sum, compensation) as two f32, for each parameter for each chunk.
        pub(crate) partials: u64,
        pub(crate) params: [u64; 3],
        /// f32 each.
        pub(crate) dparams: [u64; 3],
        /// 1: the parameters are f32; 0: they are of the type of x.
        pub(crate) params_are_f32: u32,
        /// 1: add to dparams; 0: overwrite them.
        pub(crate) accumulate: u32,
        /// xIELU: 1: the parameters pass through a softplus; 0: they are used as they are.
        pub(crate) raw_params: u32,
        /// xIELU: 1: the gradient of the clamped formula; 0: the clamped gradient.
        pub(crate) autograd: u32,
        /// xIELU: β, unless it is a parameter.
        pub(crate) beta: f32,
        /// xIELU: the bound of the clamp; +inf without one.
        pub(crate) eps: f32,
    }

    /// Which labels Goldfish drops. Filled in by `src/raw/goldfish.rs`; read by
    /// kernels/loss/goldfish.cuh.
    GoldfishArgs {
        /// One id for each label.
        pub(crate) ids: u64,
        /// `halo_len` ids for each segment, of the type of the others: those before its first label.
        pub(crate) halo: u64,
        pub(crate) halo_len: u64,
        /// Labels of a segment: a row, or all of them.
        pub(crate) len: u64,
        /// `offsets` i32, or 0 where segments are not cut into documents.
        pub(crate) cu_seqlens: u64,
        pub(crate) offsets: u64,
        /// `exempts` i64.
        pub(crate) exempt: u64,
        pub(crate) exempts: u64,
        /// Static: the first position that is dropped.
        pub(crate) start: u64,
        /// Random and Hash64: mixed already.
        pub(crate) seed: u64,
        /// Random, ProductAvalanche and Hash64: what is below is dropped.
        pub(crate) cut: u64,
        /// ProductTable and DotTable: GOLDFISH_TABLE_LEN bits, in u32 from the lowest bit on; 1 is dropped.
        pub(crate) bitmap: u64,
        /// DotTable: h u64, the oldest id's first.
        pub(crate) coefficients: u64,
        /// One of the GOLDFISH numbers.
        pub(crate) strategy: u32,
        /// One of the ID numbers: the type of the ids and of the halo.
        pub(crate) id_type: u32,
        /// Static: the period.
        pub(crate) k: u32,
        /// Ids in a window.
        pub(crate) h: u32,
        /// Hash64: what is added to the ids at the first distances from the label. Beyond, a kernel computes it.
        pub(crate) places: [u64; 32],
    }

    /// What the entries of goldfish take. An output whose address is 0 is not written.
    GoldfishMaskArgs {
        pub(crate) goldfish: GoldfishArgs,
        pub(crate) labels: u64,
        /// u8: 1 kept, 0 dropped.
        pub(crate) keep: u64,
        /// f32: 1 kept, 0 dropped.
        pub(crate) weights: u64,
        /// The labels that each block dropped, u64.
        pub(crate) partials: u64,
        /// How many blocks that were.
        pub(crate) blocks: u64,
        /// Labels kept and labels dropped, u64.
        pub(crate) counts: u64,
    }

    /// What a part of a row of logits comes to: the columns of one block, or of one rank. 20 bytes.
    #[non_exhaustive]
    RowStats {
        /// The largest logit, before the cap; -inf of no columns.
        pub max: f32,
        /// Σ e^z of the capped logits without the target's, relative to the power of two that belongs to
        /// `max` (kernels/common/softmax.cuh).
        pub rest: f32,
        /// The target's logit, before the cap; -inf where the target is in another part.
        pub target: f32,
        /// Σ z of the capped logits, with label smoothing; else 0.
        pub sum: f32,
        /// Class of the largest logit, the first of several, if asked for; else `u32::MAX`.
        pub argmax: u32,
    }

    /// Totals of a batch.
    #[non_exhaustive]
    CrossEntropySummary {
        /// Σ of the losses of the kept rows.
        pub loss: f32,
        /// `loss / normalizer`. 0 if no row is kept, or NaN if that was asked for.
        pub mean: f32,
        /// The part of `loss` that is z-loss.
        pub z_loss: f32,
        /// Σ of the weights of the kept rows.
        pub weight: f32,
        /// What gradients are divided by.
        pub normalizer: f32,
        /// Σ of the losses of the rows that Goldfish dropped, if asked for; else 0.
        pub dropped_loss: f32,
        /// Rows whose label is not ignored, whatever their weight, dropped or not.
        pub labels: u64,
        /// Rows that count: not ignored, weight not 0, not dropped.
        pub kept: u64,
        /// Rows that would count, had Goldfish not dropped them.
        pub dropped: u64,
        /// Kept rows whose label is the argmax, if that was asked for; else 0.
        pub correct: u64,
        /// The first row whose label is not a class; `u64::MAX` if there is none.
        pub bad_row: u64,
        /// The first kept row whose label is a class and whose loss is NaN, from a NaN or +inf among its logits or
        /// in its weight, or from nothing but −inf; `u64::MAX` if there is none.
        pub nan_row: u64,
    }

    /// What some rows come to. Sums are pairs of sum and compensation.
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

    /// What the entries of cross-entropy take. Addresses are of the device; what has address 0 is absent.
    CrossEntropyArgs {
        pub(crate) logits: LogitsMatrix,
        pub(crate) dlogits: LogitsMatrix,
        pub(crate) rows: u64,
        /// Columns that are classes.
        pub(crate) cols: u64,
        /// Columns of dlogits; 0 is written beyond `cols`.
        pub(crate) padded_cols: u64,
        /// Blocks per row.
        pub(crate) splits: u64,
        pub(crate) packs_per_split: u64,
        /// The class of column 0.
        pub(crate) first_class: u64,
        /// Classes of all ranks.
        pub(crate) classes: u64,
        pub(crate) labels: u64,
        pub(crate) ignore_index: i64,
        /// f32 each.
        pub(crate) weights: u64,
        /// f32, `dloss_stride` elements apart.
        pub(crate) dloss: u64,
        pub(crate) dloss_stride: i64,
        /// An f32 by which gradients are divided.
        pub(crate) normalizer: u64,
        /// RowStats of [parts][rows], to be merged.
        pub(crate) parts: u64,
        pub(crate) part_count: u64,
        /// RowStats of [splits][rows] or, merged, of [rows]; written.
        pub(crate) stats: u64,
        /// Per row, f32.
        pub(crate) loss: u64,
        pub(crate) z_loss_out: u64,
        pub(crate) lse: u64,
        /// Per row, i32.
        pub(crate) argmax: u64,
        pub(crate) rows_per_chunk: u64,
        pub(crate) chunks: u64,
        /// CrossEntropyTotals of each chunk of rows.
        pub(crate) totals: u64,
        /// A u32, set to 0 by the kernel that reads the logits: `finish` counts the chunks that are done with it, and the
        /// block that does the last one adds them up. If absent, `totals` does, unless there is one chunk.
        pub(crate) chunks_done: u64,
        /// CrossEntropySummary.
        pub(crate) summary: u64,
        pub(crate) label_smoothing: f32,
        pub(crate) z_loss: f32,
        /// 0: none.
        pub(crate) softcap: f32,
        /// One of the ID numbers: I32, I64 or U32.
        pub(crate) label_type: u32,
        /// 1: find the argmax.
        pub(crate) with_argmax: u32,
        /// 1: the loss of dropped rows is computed too.
        pub(crate) with_dropped: u32,
        /// A row of logits fits into the dynamic shared memory.
        pub(crate) on_chip: u32,
        /// One of the NORMALIZE_BY numbers.
        pub(crate) normalize_by: u32,
        /// 1: the mean of no rows is NaN, not 0.
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
    /// Entries of a table of Goldfish.
    GOLDFISH_TABLE_LEN = 1000003,
    /// The types of ids and labels.
    ID_I32 = 0,
    ID_I64 = 1,
    ID_U32 = 2,
    ID_U16 = 3,
    ID_U8 = 4,
    /// The values of `CrossEntropyArgs::normalize_by`: what the mean is divided by. 1.
    NORMALIZE_BY_NONE = 0,
    /// The number of kept rows.
    NORMALIZE_BY_KEPT = 1,
    /// Their weight.
    NORMALIZE_BY_WEIGHT = 2,
    /// `CrossEntropyArgs::normalizer`.
    NORMALIZE_BY_EXTERNAL = 3,
    /// The number of rows whose label is not ignored.
    NORMALIZE_BY_LABELS = 4,
}
