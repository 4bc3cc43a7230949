// The parameter blocks that kernels take, declared once. `src/launch.rs` expands this into Rust structs,
// `build.rs` into the C++ structs of the generated header args.cuh; fields are laid out by the C rules
// in both.

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
}
