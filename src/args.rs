// The parameter blocks that kernels take, declared once. `src/launch.rs` expands this into Rust structs,
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
        /// ProductTable and DotTable: `table_len` bits, in u32 from the lowest bit on; 1 is dropped.
        pub(crate) bitmap: u64,
        pub(crate) table_len: u64,
        /// DotTable: h u64, the oldest id's first.
        pub(crate) coefficients: u64,
        /// One of the GOLDFISH numbers.
        pub(crate) strategy: u32,
        /// 1: ids and halo are i64; 0: they are i32.
        pub(crate) ids_are_i64: u32,
        /// Static: the period.
        pub(crate) k: u32,
        /// Ids in a window.
        pub(crate) h: u32,
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
}
