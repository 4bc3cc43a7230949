// The parameter blocks that kernels take, declared once. `src/launch.rs` expands this into the Rust
// struct, `build.rs` into the C++ struct of the generated header args.cuh; fields are laid out by
// the C rules in both.

kernel_args! {
    /// What the entries of an activation take. Pointers are device addresses; pitches are in
    /// elements; the cut is `Cut` of `src/geometry.rs`.
    ActivationArgs {
        x: u64,
        dy: u64,
        /// y of the forward, dx of the backward.
        out: u64,
        x_pitch: u64,
        dy_pitch: u64,
        out_pitch: u64,
        rows: u64,
        cols: u64,
        tiles_per_row: u64,
        tiles_per_chunk: u64,
        chunks: u64,
        /// (sum, compensation) as two f32, for each parameter for each chunk.
        partials: u64,
        params: [u64; 2],
        /// f32 each.
        dparams: [u64; 2],
        /// 1: the parameters are f32; 0: they are of the type of x.
        params_are_f32: u32,
        /// 1: add to dparams; 0: overwrite them.
        accumulate: u32,
        /// xIELU: 1: the parameters pass through a softplus; 0: they are used as they are.
        raw_params: u32,
        /// xIELU: 1: the gradient of the clamped formula; 0: the clamped gradient.
        autograd: u32,
        beta: f32,
        eps: f32,
    }
}
