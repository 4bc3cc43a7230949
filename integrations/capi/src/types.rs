//! What the header declares: numbers, and structs of numbers and pointers, so that any bits in them are valid.

use std::ffi::{c_char, c_void};

use crate::goldfish::xact_goldfish;

/// What a function returns: XACT_OK or one of the XACT_ERROR numbers.
pub type xact_status = i32;

/// The version of the interface that this header describes; xact_abi_version has that of the library. It grows where a
/// program that was compiled with an older header would no longer work.
pub const XACT_ABI_VERSION: u32 = 1;

/// The most trainable scalars that an activation has.
pub const XACT_MAX_PARAMS: usize = 3;

/// The call did what it says.
pub const XACT_OK: i32 = 0;
/// The library was compiled without nvcc or without its feature `cuda`, so it holds no kernels.
pub const XACT_ERROR_KERNELS_NOT_BUILT: i32 = 1;
/// No CUDA driver library was found on this machine.
pub const XACT_ERROR_NO_DRIVER: i32 = 2;
/// A call of the CUDA driver failed.
pub const XACT_ERROR_DRIVER: i32 = 3;
/// The driver is older than what the kernels were compiled to.
pub const XACT_ERROR_DRIVER_TOO_OLD: i32 = 4;
/// The device is older than what the kernels were compiled for.
pub const XACT_ERROR_DEVICE_TOO_OLD: i32 = 5;
/// The driver loads none of the images of a kernel.
pub const XACT_ERROR_NOT_LOADED: i32 = 6;
/// A tensor, or an array of pointers, does not have the length that the call needs.
pub const XACT_ERROR_LENGTH: i32 = 7;
/// A tensor does not have the shape of the others.
pub const XACT_ERROR_SHAPE: i32 = 8;
/// The type of the parameters is neither f32 nor that of x.
pub const XACT_ERROR_PARAM_DTYPE: i32 = 9;
/// Labels of a type that only ids may have.
pub const XACT_ERROR_LABEL_TYPE: i32 = 10;
/// A pitch is smaller than the row.
pub const XACT_ERROR_PITCH: i32 = 11;
/// Groups of rows are closer to each other than they are long.
pub const XACT_ERROR_GROUP_PITCH: i32 = 12;
/// A buffer does not split into a gate and a value half.
pub const XACT_ERROR_HALVES: i32 = 13;
/// Rows that come in groups were given where rows of one pitch are needed.
pub const XACT_ERROR_GROUPS: i32 = 14;
/// A tensor has more bytes than can be addressed.
pub const XACT_ERROR_TOO_LARGE: i32 = 15;
/// Two buffers overlap where neither the same buffer nor separate ones would be right.
pub const XACT_ERROR_OVERLAP: i32 = 16;
/// A pointer that must be given is null.
pub const XACT_ERROR_NULL: i32 = 17;
/// A pointer is not a multiple of the size of what it points to.
pub const XACT_ERROR_MISALIGNED: i32 = 18;
/// A stream or buffer belongs to another context than the device.
pub const XACT_ERROR_WRONG_CONTEXT: i32 = 19;
/// A table was given for a strategy that has none.
pub const XACT_ERROR_NO_TABLE: i32 = 20;
/// Offsets of documents decrease.
pub const XACT_ERROR_OFFSETS: i32 = 21;
/// An option, or a number of a strategy, is out of its range.
pub const XACT_ERROR_OUT_OF_RANGE: i32 = 22;
/// No op has this name.
pub const XACT_ERROR_UNKNOWN_OP: i32 = 23;
/// The op has no gated forms.
pub const XACT_ERROR_NOT_GATED: i32 = 24;
/// There are no classes, too many of them, or a rank's columns reach beyond them.
pub const XACT_ERROR_CLASSES: i32 = 25;
/// A queue was used in another thread. No function of this header returns it.
pub const XACT_ERROR_WRONG_THREAD: i32 = 26;
/// A workspace is too small.
pub const XACT_ERROR_WORKSPACE: i32 = 27;
/// The `size` of a struct is not one that a program can have filled in, or fields are set that the library does not
/// know: it is older than the header.
pub const XACT_ERROR_STRUCT_SIZE: i32 = 100;
/// A field has a number that is not among the named ones.
pub const XACT_ERROR_ENUM: i32 = 101;
/// The threads of the host's functions could not be started.
pub const XACT_ERROR_THREADS: i32 = 102;
/// A bug in the library; the text says where. What the call writes may be written in part.
pub const XACT_ERROR_PANIC: i32 = 103;
/// An error that has no number of its own yet.
pub const XACT_ERROR_OTHER: i32 = 104;

/// IEEE binary32: C's float.
pub const XACT_DTYPE_F32: i32 = 1;
/// IEEE binary16: CUDA's __half.
pub const XACT_DTYPE_F16: i32 = 2;
/// The upper half of a binary32: CUDA's __nv_bfloat16.
pub const XACT_DTYPE_BF16: i32 = 3;

/// uint8_t ids. Not for labels.
pub const XACT_ID_U8: i32 = 1;
/// uint16_t ids. Not for labels.
pub const XACT_ID_U16: i32 = 2;
/// uint32_t ids or labels.
pub const XACT_ID_U32: i32 = 3;
/// int32_t ids or labels.
pub const XACT_ID_I32: i32 = 4;
/// int64_t ids or labels.
pub const XACT_ID_I64: i32 = 5;

/// Not gated: y = f(x).
pub const XACT_ORDER_PLAIN: i32 = 0;
/// Gated by the gate alone: y = G(x)·v, where f(x) = x·G(x).
pub const XACT_ORDER_FIRST: i32 = 1;
/// Gated by the function: y = f(x)·v.
pub const XACT_ORDER_SECOND: i32 = 2;

/// As many blocks as there are pieces of work.
#[allow(dead_code)] // without `cuda`
pub const XACT_BLOCKS_ALL: i32 = 0;
/// As many blocks as the device holds at once.
#[allow(dead_code)] // without `cuda`
pub const XACT_BLOCKS_RESIDENT: i32 = -1;

/// xIELU: the scalars are as they are trained and stored, α_p = softplus(alpha_p), α_n = β + softplus(alpha_n); their
/// gradients are those of the stored values.
pub const XACT_PARAMETERS_RAW: i32 = 0;
/// xIELU: the scalars are α_p and α_n themselves.
pub const XACT_PARAMETERS_EFFECTIVE: i32 = 1;

/// xIELU: the ideal function.
pub const XACT_COMPAT_NONE: i32 = 0;
/// xIELU: the clamp of Hugging Face's and Megatron's formula, α_n·(expm1(min(x, eps)) − x) + β·x for x ≤ 0, with the
/// derivative α_n·expm1(min(x, eps)) + β between eps and 0.
pub const XACT_COMPAT_ANALYTIC: i32 = 1;
/// xIELU: the same clamp, with the derivative that automatic differentiation of the formula gives.
pub const XACT_COMPAT_AUTOGRAD: i32 = 2;

/// Losses are divided by the number of kept rows.
pub const XACT_NORMALIZER_KEPT: i32 = 0;
/// Losses are not divided.
pub const XACT_NORMALIZER_NONE: i32 = 1;
/// Losses are divided by the number of rows whose label is not ignored, whatever their weight, dropped or not.
pub const XACT_NORMALIZER_LABELS: i32 = 2;
/// Losses are divided by the sum of the weights of the kept rows.
pub const XACT_NORMALIZER_WEIGHT: i32 = 3;

/// Goldfish: every k-th label of a row or document, from `start` on.
pub const XACT_STRATEGY_STATIC: i32 = 1;
/// Goldfish: labels at random, independent of the text, from `seed`.
pub const XACT_STRATEGY_RANDOM: i32 = 2;
/// Goldfish: the product of the window's ids selects an entry of a table; `hash-table` of the official code.
pub const XACT_STRATEGY_PRODUCT_TABLE: i32 = 3;
/// Goldfish: the product is mixed to 32 bits; `hash-avalanche` of the official code.
pub const XACT_STRATEGY_PRODUCT_AVALANCHE: i32 = 4;
/// Goldfish: the sum of the window's ids times coefficients selects an entry of a table.
pub const XACT_STRATEGY_DOT_TABLE: i32 = 5;
/// Goldfish: a 64-bit hash of the window that depends on every id and its place, from `seed`. What to use unless you
/// must match one of the others.
pub const XACT_STRATEGY_HASH64: i32 = 6;

/// Labels come in rows of `row_len`.
pub const XACT_LAYOUT_ROWS: i32 = 0;
/// All labels are one segment, which `cu_seqlens` cuts into documents.
pub const XACT_LAYOUT_DOCUMENTS: i32 = 1;

/// Where a `[rows, cols]` tensor lies.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct xact_matrix {
    /// Address of the first element; a multiple of the element's size. Null where the tensor is absent, or has no
    /// elements.
    pub ptr: *mut c_void,
    /// Elements from the start of one row to the start of the next, at least `cols`; 0 for `cols`.
    pub pitch: u64,
}

/// Where `[rows, cols]` logits lie. Rows may come in groups with a pitch of their own, such as `logits[:, :-1]` of `[B,
/// S, V]`: groups of S − 1 rows, which are S·V elements apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct xact_logits_matrix {
    /// Address of the first element; a multiple of the element's size.
    pub ptr: *mut c_void,
    /// Elements from the start of one row to the start of the next one of its group, at least `cols`; 0 for `cols`.
    pub pitch: u64,
    /// Rows of a group, of which `rows` is a multiple; 0 if there are no groups.
    pub group_rows: u64,
    /// Elements from the start of one group to the start of the next, at least what a group takes.
    pub group_pitch: u64,
}

/// An activation with its options. xact_activation_init fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_activation {
    /// sizeof(xact_activation).
    pub size: u64,
    /// The name of the op: "xielu", "xatlu", "xgelu" or "xsilu". The string must live as long as the struct is used.
    pub name: *const c_char,
    /// xIELU's β, the slope at 0, unless a call has it as its third parameter. 0.5. Other ops ignore this and what
    /// follows.
    pub beta: f32,
    /// One of the XACT_PARAMETERS numbers: what the scalars of xIELU are. XACT_PARAMETERS_RAW.
    pub parameters: i32,
    /// One of the XACT_COMPAT numbers: whether xIELU has the clamp of other implementations. XACT_COMPAT_NONE.
    pub compat: i32,
    /// The bound of that clamp. -1e-6.
    pub eps: f32,
}

/// What an op takes. xact_activation_describe fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_signature {
    /// sizeof(xact_signature), filled in by the caller.
    pub size: u64,
    /// The name of the op.
    pub name: *const c_char,
    /// How many trainable scalars it has.
    pub params: u64,
    /// How many of them, at the end, may be left out: the op's options then hold their values.
    pub optional: u64,
    /// The names of the scalars, in the order in which calls take them; null beyond `params`.
    pub param_names: [*const c_char; XACT_MAX_PARAMS],
    /// The names of their gradients.
    pub gradient_names: [*const c_char; XACT_MAX_PARAMS],
    /// 1 if the op has gated forms, else 0.
    pub gated: u64,
}

/// The tensors of an activation, forward and backward. Of what a function does not use, nothing is looked at.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_activation_args {
    /// sizeof(xact_activation_args).
    pub size: u64,
    /// Rows of every tensor.
    pub rows: u64,
    /// Elements in a row.
    pub cols: u64,
    /// One of the XACT_DTYPE numbers: the type of all tensors.
    pub dtype: i32,
    /// One of the XACT_ORDER numbers: whether, and how, x gates v.
    pub order: i32,
    /// One of the XACT_DTYPE numbers: the type of the parameters, f32 or that of the tensors; 0 for f32.
    pub param_dtype: i32,
    /// The most blocks to launch, XACT_BLOCKS_ALL or XACT_BLOCKS_RESIDENT. The results are the same. Host: not used.
    pub blocks: i32,
    /// An array of `param_count` pointers, each to one trainable scalar, in the order of xact_signature. On a device
    /// the array is host memory, and the scalars are device memory.
    pub params: *const *const c_void,
    /// How many there are; optional ones at the end may be left out.
    pub param_count: u64,
    /// `[rows, cols]`, read: the input, or the gate.
    pub x: xact_matrix,
    /// `[rows, cols]`, read: the value, if gated.
    pub v: xact_matrix,
    /// `[rows, cols]`, written: f(x), or g(x)·v. A backward writes it again if it is given, so that a training stack
    /// need not store it.
    pub y: xact_matrix,
    /// `[rows, cols]`, read by a backward: the gradient with respect to y.
    pub dy: xact_matrix,
    /// `[rows, cols]`, written by a backward: the gradient with respect to x, dy·f′(x), or dy·v·g′(x).
    pub dx: xact_matrix,
    /// `[rows, cols]`, written by a backward, if gated: the gradient with respect to v, dy·g(x).
    pub dv: xact_matrix,
    /// An array of `dparam_count` pointers, each to one f32, written by a backward: the gradients of the parameters,
    /// which are sums over all elements, for raw parameters with softplus′. Null if they are not wanted. Under tensor
    /// parallelism they are a rank's part of the sums.
    pub dparams: *const *mut f32,
    /// How many there are: one for each parameter that is given; those of optional ones may be left out.
    pub dparam_count: u64,
    /// 1: the gradients of the parameters are added to what is there; 0: they overwrite it.
    pub accumulate: u64,
    /// At least xact_activation_workspace_bytes bytes of device memory, aligned to 8, for a backward that has
    /// `dparams`. Nobody else uses it until the work has completed. Host: not used.
    pub workspace: *mut c_void,
    /// Its size in bytes.
    pub workspace_bytes: u64,
}

/// The options of the loss. xact_cross_entropy_init fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_cross_entropy {
    /// sizeof(xact_cross_entropy).
    pub size: u64,
    /// Rows with this label are masked. -100; of u32 labels no label is that.
    pub ignore_index: i64,
    /// Columns that are classes, if fewer than a row has: the others are not read, and their gradient is 0. On a rank
    /// of several, the rank's own number. 0 for all columns, the default.
    pub vocab: u64,
    /// ε, in [0, 1): this part of the target is spread evenly over all classes. 0.
    pub label_smoothing: f32,
    /// λ ≥ 0: adds λ·lse² to the loss of each row. 0.
    pub z_loss: f32,
    /// c > 0: logits pass through c·tanh(z/c). 0 for none, the default.
    pub softcap: f32,
    /// One of the XACT_NORMALIZER numbers: what the mean and the gradients are divided by. XACT_NORMALIZER_KEPT.
    pub normalizer: i32,
    /// 1: the loss of the rows that Goldfish drops is computed too. 0.
    pub dropped_loss: i32,
    /// 1: the mean over no rows is NaN, as in PyTorch. 0: it is 0, the default.
    pub empty_is_nan: i32,
}

/// Totals of a batch of rows. It has no `size`: kernels write it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct xact_cross_entropy_summary {
    /// The sum of the losses of the kept rows.
    pub loss: f32,
    /// loss / normalizer; 0 if no row is kept, or NaN if that was asked for.
    pub mean: f32,
    /// The part of `loss` that is z-loss.
    pub z_loss: f32,
    /// The sum of the weights of the kept rows.
    pub weight: f32,
    /// What gradients are divided by.
    pub normalizer: f32,
    /// The sum of the losses of the rows that Goldfish dropped, if asked for; else 0.
    pub dropped_loss: f32,
    /// Rows whose label is not ignored, whatever their weight, dropped or not.
    pub labels: u64,
    /// Rows that count: not ignored, weight not 0, not dropped.
    pub kept: u64,
    /// Rows that would count, had Goldfish not dropped them.
    pub dropped: u64,
    /// Kept rows whose label is the argmax, if `argmax` was asked for; else 0.
    pub correct: u64,
    /// The first row whose label is not a class; UINT64_MAX if there is none.
    pub bad_row: u64,
    /// The first other kept row whose loss is NaN; UINT64_MAX if there is none.
    pub nan_row: u64,
}

/// How Goldfish decides which labels are dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_goldfish_strategy {
    /// sizeof(xact_goldfish_strategy).
    pub size: u64,
    /// One of the XACT_STRATEGY numbers.
    pub kind: i32,
    /// About one label in k is dropped, at least 2.
    pub k: u32,
    /// Ids in a window, at least 1; of XACT_STRATEGY_STATIC and XACT_STRATEGY_RANDOM not used.
    pub h: u64,
    /// Of XACT_STRATEGY_RANDOM and XACT_STRATEGY_HASH64: any number.
    pub seed: u64,
    /// Of XACT_STRATEGY_STATIC: the first label that is dropped.
    pub start: u64,
    /// Null, or 1,000,003 numbers of the caller's in the place of the strategy's own table, such as those that PyTorch
    /// drew on a GPU: an entry r drops if r < 1/k. Host memory.
    pub table: *const f32,
    /// How many there are.
    pub table_len: u64,
    /// Null, or the caller's decision for each entry of the table: a bit each, from the lowest of the first byte on, 1
    /// if it drops. `k` is then only a name. Not together with `table`. Host memory.
    pub bitmap: *const u8,
    /// How many bytes there are, 125,001.
    pub bitmap_bytes: u64,
}

/// The ids from which Goldfish decides about labels, one id for each label.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_decision {
    /// sizeof(xact_decision).
    pub size: u64,
    /// The strategy.
    pub goldfish: *const xact_goldfish,
    /// One id for each label, of `id_type`. They need not be the labels: a label that is ignored still has an id.
    pub hash_ids: *const c_void,
    /// One of the XACT_ID numbers: the type of `hash_ids` and `halo`.
    pub id_type: i32,
    /// One of the XACT_LAYOUT numbers: how labels are cut into segments. No window crosses a boundary.
    pub layout: i32,
    /// Of XACT_LAYOUT_ROWS: labels of a row, of which the number of labels is a multiple; 0 if all are one row.
    pub row_len: u64,
    /// Of XACT_LAYOUT_DOCUMENTS: document d begins at label cu_seqlens[d]. Offsets that do not decrease; the first is
    /// negative if the first document began that many labels earlier.
    pub cu_seqlens: *const i32,
    /// How many offsets there are.
    pub cu_seqlens_len: u64,
    /// `[segments, n]`, or null: the n ids before the first label of each segment.
    pub halo: *const c_void,
    /// How many ids of a halo there are in all.
    pub halo_len: u64,
    /// Ids that are never dropped, in any order, or null.
    pub exempt: *const i64,
    /// How many there are.
    pub exempt_len: u64,
    /// Device: a copy of xact_goldfish_bitmap in device memory, if the strategy has one. Host: not used.
    pub bitmap: *const u32,
    /// Device: a copy of xact_goldfish_coefficients in device memory, if the strategy has them. Host: not used.
    pub coefficients: *const i64,
}

/// The tensors of a Goldfish mask.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_goldfish_args {
    /// sizeof(xact_goldfish_args).
    pub size: u64,
    /// How many labels there are.
    pub labels: u64,
    /// How it is decided.
    pub decision: *const xact_decision,
    /// `[labels]` or null, written: 1 kept, 0 dropped.
    pub keep: *mut u8,
    /// `[labels]` or null, written: the same as weights of a loss, 1 or 0.
    pub weights: *mut f32,
    /// `[2]` or null, written: how many labels are kept, and how many are dropped.
    pub counts: *mut i64,
    /// At least xact_goldfish_workspace_bytes bytes of device memory, aligned to 8, if there are `counts`. Nobody else
    /// uses it until the work has completed. Host: not used.
    pub workspace: *mut c_void,
    /// Its size in bytes.
    pub workspace_bytes: u64,
    /// The most blocks to launch, XACT_BLOCKS_ALL or XACT_BLOCKS_RESIDENT. Host: not used.
    pub blocks: i64,
}

/// The tensors of the loss. Of what a function does not use, nothing is looked at, so that one struct serves a forward
/// and its backward. A row is masked if its label is ignored, if its weight is 0, or if Goldfish drops it; all others
/// are kept.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_cross_entropy_args {
    /// sizeof(xact_cross_entropy_args).
    pub size: u64,
    /// N, the number of rows.
    pub rows: u64,
    /// V, the columns of the logits, of which the first xact_cross_entropy.vocab are classes. Of a rank of several, its
    /// own. xact_cross_entropy_finish: not used.
    pub cols: u64,
    /// One of the XACT_DTYPE numbers: the type of logits and dlogits.
    pub dtype: i32,
    /// One of the XACT_ID numbers: the type of the labels, i32, i64 or u32.
    pub label_type: i32,
    /// `[N, V]`: the logits. Read; xact_cross_entropy_forward_with_gradient overwrites them with their gradients.
    pub logits: xact_logits_matrix,
    /// `[N, V]`, written by xact_cross_entropy_backward: the gradients, 0 in columns that are no classes. They may be
    /// the very logits.
    pub dlogits: xact_logits_matrix,
    /// `[N]` of `label_type`, read: the class of each row, or xact_cross_entropy.ignore_index.
    pub labels: *const c_void,
    /// `[N]` or null, read: the weights of the rows.
    pub weights: *const f32,
    /// Null, or what decides which rows Goldfish drops. There is an id for each row.
    pub decision: *const xact_decision,
    /// Where columns are spread over ranks: the class of this rank's first column. Used by
    /// xact_cross_entropy_partial_stats, xact_cross_entropy_finish and xact_cross_entropy_backward.
    pub first_class: u64,
    /// Where columns are spread over ranks: classes of all ranks; 0 where they are not.
    pub classes: u64,
    /// Null for 1, or read for gradients: the gradient with respect to the loss of row r is dloss[r·dloss_stride].
    pub dloss: *const f32,
    /// 0 for one number that all rows share, 1 for one of each row, or any other.
    pub dloss_stride: i64,
    /// Null, or one number to divide by. Of xact_cross_entropy_backward: `normalizer` of the forward's summary, or a
    /// number of yours; null for 1. Of the others: in the place of what xact_cross_entropy.normalizer says.
    pub normalizer: *const f32,
    /// `[N]` or null, written: losses, weighted, not normalised; 0 of a masked row, NaN of one whose label is no class.
    pub loss: *mut f32,
    /// `[N]` or null, written: the part of each loss that is z-loss.
    pub z_loss: *mut f32,
    /// `[N]` or null, written: log Σ e^logit; 0 of a masked row.
    pub lse: *mut f32,
    /// `[N]` or null, written: the class of the largest logit, the first of several; -1 of a masked row.
    pub argmax: *mut i32,
    /// xact_cross_entropy_saved_bytes bytes or null, aligned to 4, written: what a backward needs, or what is to be
    /// gathered from all ranks. xact_cross_entropy_partial_stats needs it.
    pub saved: *mut c_void,
    /// Written: the totals. It must be given to all functions that compute losses. Device memory on a device.
    pub summary: *mut xact_cross_entropy_summary,
    /// `[ranks, saved_bytes]`, aligned to 4, read by xact_cross_entropy_backward and xact_cross_entropy_finish: what a
    /// forward has saved, or what all ranks have, in their order.
    pub gathered: *const c_void,
    /// How many ranks that are; 0 for 1.
    pub ranks: u64,
    /// At least xact_cross_entropy_workspace_bytes bytes of device memory, aligned to 8, for all but
    /// xact_cross_entropy_backward. Nobody else uses it until the work has completed. Host: not used.
    pub workspace: *mut c_void,
    /// Its size in bytes.
    pub workspace_bytes: u64,
    /// The most blocks to launch, XACT_BLOCKS_ALL or XACT_BLOCKS_RESIDENT. Host: not used.
    pub blocks: i32,
    /// xact_cross_entropy_forward_with_gradient on devices where clusters of blocks share rows: at least how many
    /// blocks a row has; 0 for as few as it fits into. Host: not used.
    pub cluster: u32,
    /// xact_cross_entropy_partial_stats: 1 if xact_cross_entropy_finish is to find the argmax.
    pub with_argmax: u64,
}
