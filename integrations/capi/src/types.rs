//! The constants and structs of the header. The structs have only numbers and pointers, so every bit pattern is valid.

use std::ffi::{c_char, c_void};

use crate::goldfish::xact_goldfish;

/// The result of a function: XACT_OK or one of the XACT_ERROR numbers.
pub type xact_status = i32;

/// The version of the interface that this header describes; xact_abi_version returns that of the library. It grows when
/// a program that was compiled with an older header would no longer work.
pub const XACT_ABI_VERSION: u32 = 1;

/// The maximum number of trainable scalars of an activation.
pub const XACT_MAX_PARAMS: usize = 3;

/// The call succeeded.
pub const XACT_OK: i32 = 0;
/// The library was compiled without nvcc or without its feature `cuda`, so it has no kernels.
pub const XACT_ERROR_KERNELS_NOT_BUILT: i32 = 1;
/// No CUDA driver library was found on this machine.
pub const XACT_ERROR_NO_DRIVER: i32 = 2;
/// A call of the CUDA driver failed.
pub const XACT_ERROR_DRIVER: i32 = 3;
/// The driver is too old for the PTX version of the kernels.
pub const XACT_ERROR_DRIVER_TOO_OLD: i32 = 4;
/// The device is older than the oldest architecture that the kernels were compiled for.
pub const XACT_ERROR_DEVICE_TOO_OLD: i32 = 5;
/// The driver loads none of the images of a kernel.
pub const XACT_ERROR_NOT_LOADED: i32 = 6;
/// A tensor, or an array of pointers, does not have the length that the call needs.
pub const XACT_ERROR_LENGTH: i32 = 7;
/// A tensor has another shape than the others.
pub const XACT_ERROR_SHAPE: i32 = 8;
/// The type of the parameters is neither f32 nor the type of x.
pub const XACT_ERROR_PARAM_DTYPE: i32 = 9;
/// The labels have a type that is only for ids.
pub const XACT_ERROR_LABEL_TYPE: i32 = 10;
/// A pitch is smaller than a row.
pub const XACT_ERROR_PITCH: i32 = 11;
/// A group pitch is smaller than a group of rows.
pub const XACT_ERROR_GROUP_PITCH: i32 = 12;
/// A buffer cannot be split into gate and value halves.
pub const XACT_ERROR_HALVES: i32 = 13;
/// The rows are in groups, but the call needs rows of a single pitch.
pub const XACT_ERROR_GROUPS: i32 = 14;
/// A tensor has more bytes than the address space.
pub const XACT_ERROR_TOO_LARGE: i32 = 15;
/// Two buffers overlap in a way that the call does not allow.
pub const XACT_ERROR_OVERLAP: i32 = 16;
/// A required pointer is null.
pub const XACT_ERROR_NULL: i32 = 17;
/// A pointer is not aligned to the size of an element.
pub const XACT_ERROR_MISALIGNED: i32 = 18;
/// A stream or buffer belongs to another context than the device.
pub const XACT_ERROR_WRONG_CONTEXT: i32 = 19;
/// A table was given for a strategy that has none.
pub const XACT_ERROR_NO_TABLE: i32 = 20;
/// The offsets `cu_seqlens` decrease.
pub const XACT_ERROR_OFFSETS: i32 = 21;
/// An option, or a number of a strategy, is out of range.
pub const XACT_ERROR_OUT_OF_RANGE: i32 = 22;
/// No op has this name.
pub const XACT_ERROR_UNKNOWN_OP: i32 = 23;
/// The op has no gated forms.
pub const XACT_ERROR_NOT_GATED: i32 = 24;
/// There are no classes, too many classes, or a rank's columns extend beyond the last class.
pub const XACT_ERROR_CLASSES: i32 = 25;
/// A queue was used in another thread. No function of this header returns it.
pub const XACT_ERROR_WRONG_THREAD: i32 = 26;
/// A workspace is too small.
pub const XACT_ERROR_WORKSPACE: i32 = 27;
/// Gate and value cannot alternate in blocks of this length.
pub const XACT_ERROR_BLOCK: i32 = 28;
/// A list of kept rows has a row that does not exist, or a row twice.
pub const XACT_ERROR_KEPT_ROW: i32 = 29;
/// A budget is too small for a row of logits, or for the given number of rows of a chunk.
pub const XACT_ERROR_BUDGET: i32 = 30;
/// The `size` of a struct is no size that any version of the struct has, or the program sets fields that the library
/// does not know, because the library is older than the header.
pub const XACT_ERROR_STRUCT_SIZE: i32 = 100;
/// A field has a number other than its named constants.
pub const XACT_ERROR_ENUM: i32 = 101;
/// The threads of the host functions could not be started.
pub const XACT_ERROR_THREADS: i32 = 102;
/// A bug in the library; the text says where. The results of the call may be partly written.
pub const XACT_ERROR_PANIC: i32 = 103;
/// An error that has no number of its own.
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
/// Gated with order 1: y = G(x)·v, where f(x) = x·G(x).
pub const XACT_ORDER_FIRST: i32 = 1;
/// Gated with order 2: y = f(x)·v.
pub const XACT_ORDER_SECOND: i32 = 2;

/// Launches one block for each piece of work.
#[allow(dead_code)] // without `cuda`
pub const XACT_BLOCKS_ALL: i32 = 0;
/// Launches as many blocks as can be resident on the device at once.
#[allow(dead_code)] // without `cuda`
pub const XACT_BLOCKS_RESIDENT: i32 = -1;

/// xIELU: the scalars are the raw values that are trained and stored, α_p = softplus(alpha_p) and
/// α_n = β + softplus(alpha_n). Their gradients are those of the raw values.
pub const XACT_PARAMETERS_RAW: i32 = 0;
/// xIELU: the scalars are the effective values α_p and α_n.
pub const XACT_PARAMETERS_EFFECTIVE: i32 = 1;

/// xIELU: the ideal function.
pub const XACT_COMPAT_NONE: i32 = 0;
/// xIELU: the clamp of Hugging Face's and Megatron's formula, α_n·(expm1(min(x, eps)) − x) + β·x for x ≤ 0, with the
/// derivative α_n·expm1(min(x, eps)) + β between eps and 0.
pub const XACT_COMPAT_ANALYTIC: i32 = 1;
/// xIELU: the same clamp, with the derivative that automatic differentiation of the formula computes.
pub const XACT_COMPAT_AUTOGRAD: i32 = 2;

/// The logits of a chunk of the head are f32.
pub const XACT_LOGITS_F32: i32 = 0;
/// The logits of a chunk of the head have the type of the hidden states.
pub const XACT_LOGITS_NARROW: i32 = 1;

/// Losses are divided by the number of kept rows.
pub const XACT_NORMALIZER_KEPT: i32 = 0;
/// Losses are not divided.
pub const XACT_NORMALIZER_NONE: i32 = 1;
/// Losses are divided by the number of rows whose label is not ignored, including rows of weight 0 and dropped rows.
pub const XACT_NORMALIZER_LABELS: i32 = 2;
/// Losses are divided by the sum of the weights of the kept rows.
pub const XACT_NORMALIZER_WEIGHT: i32 = 3;

/// Goldfish: drops every k-th label of a row or document, from `start` on.
pub const XACT_STRATEGY_STATIC: i32 = 1;
/// Goldfish: drops random labels, which depend on `seed` and not on the ids.
pub const XACT_STRATEGY_RANDOM: i32 = 2;
/// Goldfish: the product of the window's ids selects an entry of a table; `hash-table` of the official code.
pub const XACT_STRATEGY_PRODUCT_TABLE: i32 = 3;
/// Goldfish: a 32-bit hash of the product of the window's ids; `hash-avalanche` of the official code.
pub const XACT_STRATEGY_PRODUCT_AVALANCHE: i32 = 4;
/// Goldfish: the sum of the window's ids times coefficients selects an entry of a table.
pub const XACT_STRATEGY_DOT_TABLE: i32 = 5;
/// Goldfish: a 64-bit hash of `seed` and of every id of the window and its position. Recommended, unless you must match
/// one of the others.
pub const XACT_STRATEGY_HASH64: i32 = 6;

/// The labels are rows of `row_len` labels.
pub const XACT_LAYOUT_ROWS: i32 = 0;
/// The labels are one segment, which the offsets `cu_seqlens` split into documents.
pub const XACT_LAYOUT_DOCUMENTS: i32 = 1;
/// Each segment is a chunk of a document, and has a halo of its own.
pub const XACT_LAYOUT_CHUNKS: i32 = 2;

/// The memory of a tensor `[rows, cols]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct xact_matrix {
    /// Address of the first element, a multiple of the element's size. Null if the tensor is absent or has no elements.
    pub ptr: *mut c_void,
    /// Number of elements from the start of a row to the start of the next, at least `cols`; 0 means `cols`.
    pub pitch: u64,
}

impl xact_matrix {
    /// An absent tensor.
    pub(crate) const NONE: xact_matrix = xact_matrix {
        ptr: std::ptr::null_mut(),
        pitch: 0,
    };
}

/// The memory of logits `[rows, cols]`. The rows may be in groups at a second pitch, as in `logits[:, :-1]` of logits
/// `[B, S, V]`: groups of S − 1 rows at a pitch of S·V elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct xact_logits_matrix {
    /// Address of the first element, a multiple of the element's size.
    pub ptr: *mut c_void,
    /// Number of elements from the start of a row to the start of the next row of the same group, at least `cols`; 0
    /// means `cols`.
    pub pitch: u64,
    /// Number of rows in a group, which must divide `rows`; 0 if there are no groups.
    pub group_rows: u64,
    /// Number of elements from the start of a group to the start of the next, at least the length of a group.
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
    /// xIELU's β, the slope at 0; not used if a call passes β as its third parameter. Default: 0.5. Only xIELU uses this
    /// and the following fields.
    pub beta: f32,
    /// One of the XACT_PARAMETERS numbers: whether the scalars of xIELU are raw or effective. Default:
    /// XACT_PARAMETERS_RAW.
    pub parameters: i32,
    /// One of the XACT_COMPAT numbers: whether xIELU has the clamp of other implementations. Default: XACT_COMPAT_NONE.
    pub compat: i32,
    /// The bound of the clamp. Default: -1e-6.
    pub eps: f32,
}

/// The parameters and forms of an activation. xact_activation_describe fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_signature {
    /// sizeof(xact_signature), filled in by the caller.
    pub size: u64,
    /// The name of the op.
    pub name: *const c_char,
    /// The number of trainable scalars.
    pub params: u64,
    /// The number of scalars at the end that a call may leave out. The op's options then have their values.
    pub optional: u64,
    /// The names of the scalars, in the order of xact_activation_args.params; null from index `params` on.
    pub param_names: [*const c_char; XACT_MAX_PARAMS],
    /// The names of the gradients of the scalars, likewise.
    pub gradient_names: [*const c_char; XACT_MAX_PARAMS],
    /// 1 if the op has gated forms, else 0.
    pub gated: u64,
}

/// The tensors of an activation's forward and backward. A function ignores the fields that it does not use.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_activation_args {
    /// sizeof(xact_activation_args).
    pub size: u64,
    /// The number of rows of every tensor.
    pub rows: u64,
    /// The number of elements of a row.
    pub cols: u64,
    /// One of the XACT_DTYPE numbers: the type of all tensors.
    pub dtype: i32,
    /// One of the XACT_ORDER numbers: the form of the activation.
    pub order: i32,
    /// One of the XACT_DTYPE numbers: the type of the parameters, f32 or the type of the tensors; 0 means f32.
    pub param_dtype: i32,
    /// The maximum number of blocks to launch, XACT_BLOCKS_ALL or XACT_BLOCKS_RESIDENT. It does not change the results.
    /// Host: not used.
    pub blocks: i32,
    /// An array of `param_count` pointers, each to one trainable scalar, in the order of xact_signature.param_names. For
    /// a device, the array is in host memory, and the scalars are in device memory.
    pub params: *const *const c_void,
    /// The length of `params`; optional scalars at the end may be left out.
    pub param_count: u64,
    /// `[rows, cols]`, read: the input, or the gate if gated.
    pub x: xact_matrix,
    /// `[rows, cols]`, read: the value, if gated.
    pub v: xact_matrix,
    /// `[rows, cols]`, written: f(x), G(x)·v or f(x)·v, see XACT_ORDER. A backward computes it again if it is not null,
    /// so that a training stack need not store it.
    pub y: xact_matrix,
    /// `[rows, cols]`, read by a backward: the gradient with respect to y.
    pub dy: xact_matrix,
    /// `[rows, cols]`, written by a backward: the gradient with respect to x. It is dy·f′(x), or, if gated, dy·v·g′(x),
    /// where g is G or f.
    pub dx: xact_matrix,
    /// `[rows, cols]`, written by a backward if gated: the gradient with respect to v, dy·g(x).
    pub dv: xact_matrix,
    /// An array of `dparam_count` pointers, each to one f32, written by a backward: the gradients of the parameters,
    /// which are sums over all elements. Those of raw parameters include the factor softplus′. Null if they are not
    /// wanted. Under tensor parallelism they are the rank's partial sums.
    pub dparams: *const *mut f32,
    /// The length of `dparams`: one gradient for each parameter in `params`; those of optional parameters may be left
    /// out.
    pub dparam_count: u64,
    /// 1: the gradients of the parameters are added to the values in `dparams`; 0: they overwrite them.
    pub accumulate: u64,
    /// At least xact_activation_workspace_bytes bytes of device memory, aligned to 8, for a backward with `dparams`.
    /// No other work may use it until the call's work has completed. Host: not used.
    pub workspace: *mut c_void,
    /// The size of `workspace` in bytes.
    pub workspace_bytes: u64,
    /// Gated: if not 0, gate and value alternate in blocks of so many columns, and both are in `x`, `[rows, 2·cols]`;
    /// their gradients are in `dx`, which may be the same matrix as `x`. `v` and `dv` are not used, and a pitch of 0 means
    /// 2·cols. 1, as for `[rows, cols, 2]` tensors, or a power of two from 8 to 256; it must divide `cols`.
    pub block: u64,
    /// With `block`: 1 if the first block of a row is one of the value, 0 if it is one of the gate.
    pub value_first: u64,
}

/// The options of the loss. xact_cross_entropy_init fills it in.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_cross_entropy {
    /// sizeof(xact_cross_entropy).
    pub size: u64,
    /// Rows with this label are masked. Default: -100. A negative number masks no row of u32 labels.
    pub ignore_index: i64,
    /// The number of columns that are classes, if the logits have more columns. The others are not read, and their
    /// gradient is 0. If the columns are spread over ranks, the number of the rank. Default: 0, which means all columns.
    pub vocab: u64,
    /// ε, in [0, 1): this share of the target is spread evenly over all classes. Default: 0.
    pub label_smoothing: f32,
    /// λ ≥ 0: adds λ·lse² to the loss of each row. Default: 0.
    pub z_loss: f32,
    /// c > 0 replaces each logit z by c·tanh(z/c). Default: 0, which leaves the logits as they are.
    pub softcap: f32,
    /// One of the XACT_NORMALIZER numbers: the divisor of the mean and the gradients. Default: XACT_NORMALIZER_KEPT.
    pub normalizer: i32,
    /// 1: the loss of the rows that Goldfish drops is also computed. Default: 0.
    pub dropped_loss: i32,
    /// 1: the mean over no rows is NaN, as in PyTorch; 0: it is 0. Default: 0.
    pub empty_is_nan: i32,
}

/// The totals over all rows of a batch. The struct has no `size`, because kernels write it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct xact_cross_entropy_summary {
    /// The sum of the losses of the kept rows.
    pub loss: f32,
    /// loss / normalizer. If no row is kept, 0, or NaN with xact_cross_entropy.empty_is_nan.
    pub mean: f32,
    /// The sum of the z-loss terms, which `loss` includes.
    pub z_loss: f32,
    /// The sum of the weights of the kept rows.
    pub weight: f32,
    /// The divisor of the gradients.
    pub normalizer: f32,
    /// The sum of the losses of the rows that Goldfish dropped, with xact_cross_entropy.dropped_loss; else 0.
    pub dropped_loss: f32,
    /// The number of rows whose label is not ignored, including rows of weight 0 and dropped rows.
    pub labels: u64,
    /// The number of kept rows: not ignored, weight not 0, not dropped.
    pub kept: u64,
    /// The number of rows that would be kept if Goldfish had not dropped them.
    pub dropped: u64,
    /// The number of kept rows whose label is the argmax, if the argmax was computed; else 0.
    pub correct: u64,
    /// The first row whose label is not a class; UINT64_MAX if there is none.
    pub bad_row: u64,
    /// The first other kept row whose loss is NaN; UINT64_MAX if there is none.
    pub nan_row: u64,
}

/// A strategy by which Goldfish decides which labels are dropped.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_goldfish_strategy {
    /// sizeof(xact_goldfish_strategy).
    pub size: u64,
    /// One of the XACT_STRATEGY numbers.
    pub kind: i32,
    /// About one label in k is dropped; at least 2.
    pub k: u32,
    /// The number of ids in a window; at least 1. XACT_STRATEGY_STATIC and XACT_STRATEGY_RANDOM do not use it.
    pub h: u64,
    /// Any number. Only XACT_STRATEGY_RANDOM and XACT_STRATEGY_HASH64 use it.
    pub seed: u64,
    /// The first label that is dropped. Only XACT_STRATEGY_STATIC uses it.
    pub start: u64,
    /// Null, or 1,000,003 numbers in host memory that replace the strategy's own table, such as those that PyTorch drew
    /// on a GPU. A label whose entry r is less than 1/k is dropped.
    pub table: *const f32,
    /// The length of `table`.
    pub table_len: u64,
    /// Null, or one bit in host memory for each entry of the table, from the lowest bit of the first byte on: 1 drops.
    /// The decisions then do not depend on `k`. It excludes `table`.
    pub bitmap: *const u8,
    /// The size of `bitmap` in bytes, 125,001.
    pub bitmap_bytes: u64,
}

/// The ids from which Goldfish decides about labels, and their division into segments.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_decision {
    /// sizeof(xact_decision).
    pub size: u64,
    /// The strategy.
    pub goldfish: *const xact_goldfish,
    /// `[labels]` of `id_type`: one id for each label. An id may differ from the label, as for an ignored label.
    pub hash_ids: *const c_void,
    /// One of the XACT_ID numbers: the type of `hash_ids` and `halo`.
    pub id_type: i32,
    /// One of the XACT_LAYOUT numbers: the division of the labels into rows, documents or chunks of documents. No window
    /// crosses a boundary.
    pub layout: i32,
    /// XACT_LAYOUT_ROWS: the number of labels of a row, which must divide the number of labels; 0 means one row.
    pub row_len: u64,
    /// XACT_LAYOUT_DOCUMENTS: document d begins at label cu_seqlens[d]. The offsets must not decrease. A negative first
    /// offset means that the first document began that many labels before the first label. XACT_LAYOUT_CHUNKS: chunk c
    /// begins at label cu_seqlens[c] and ends before label cu_seqlens[c + 1]. The offsets, one more than chunks, must not
    /// be negative or decrease.
    pub cu_seqlens: *const i32,
    /// The length of `cu_seqlens`.
    pub cu_seqlens_len: u64,
    /// `[segments, n]` or null: the n ids before the first label of each segment.
    pub halo: *const c_void,
    /// The number of ids in `halo`, segments·n.
    pub halo_len: u64,
    /// Ids whose labels are never dropped, in any order, or null.
    pub exempt: *const i64,
    /// The length of `exempt`.
    pub exempt_len: u64,
    /// Device: a copy of xact_goldfish_bitmap in device memory, if the strategy has one. Host: not used.
    pub bitmap: *const u32,
    /// Device: a copy of xact_goldfish_coefficients in device memory, if the strategy has them. Host: not used.
    pub coefficients: *const i64,
    /// XACT_LAYOUT_CHUNKS: `[chunks]`, how many labels of its document precede each chunk; 0 if the document begins with it.
    /// Must not be negative. Of the halo of a chunk, the last min(n, preceding[c]) ids are used. Labels before the first
    /// offset, and labels from the last offset on, are chunks without a halo that begin a document.
    pub preceding: *const i64,
    /// The length of `preceding`.
    pub preceding_len: u64,
    /// The number of rows of text that are interleaved: labels, ids and outputs are `[s, interleaved]`, and label i is decided
    /// as label (i mod interleaved)·s + i div interleaved of the call on the transposed tensors. The row length, the offsets
    /// and the halo are those of that call. No window crosses the start of a row of text. It must divide the number of
    /// labels. 0 or 1: none are interleaved.
    pub interleaved: u64,
}

/// The tensors of a Goldfish mask.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_goldfish_args {
    /// sizeof(xact_goldfish_args).
    pub size: u64,
    /// The number of labels.
    pub labels: u64,
    /// The strategy and the ids.
    pub decision: *const xact_decision,
    /// `[labels]` or null, written: 1 if the label is kept, 0 if it is dropped.
    pub keep: *mut u8,
    /// `[labels]` or null, written: the same as weights for the loss, 1 or 0.
    pub weights: *mut f32,
    /// `[2]` or null, written: the number of kept labels, and the number of dropped labels.
    pub counts: *mut i64,
    /// At least xact_goldfish_workspace_bytes bytes of device memory, aligned to 8, if `counts` is not null. No other
    /// work may use it until the call's work has completed. Host: not used.
    pub workspace: *mut c_void,
    /// The size of `workspace` in bytes.
    pub workspace_bytes: u64,
    /// The maximum number of blocks to launch, XACT_BLOCKS_ALL or XACT_BLOCKS_RESIDENT. Host: not used.
    pub blocks: i64,
}

/// The tensors of the loss. A function ignores the fields that it does not use, so a forward and its backward can share
/// one struct. A row is masked if its label is ignored, if its weight is 0, or if Goldfish drops it; all other rows are
/// kept.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_cross_entropy_args {
    /// sizeof(xact_cross_entropy_args).
    pub size: u64,
    /// N, the number of rows.
    pub rows: u64,
    /// V, the number of columns of the logits, of which the first xact_cross_entropy.vocab are classes. If the columns
    /// are spread over ranks, the number of the rank. xact_cross_entropy_finish does not use it.
    pub cols: u64,
    /// One of the XACT_DTYPE numbers: the type of logits and dlogits.
    pub dtype: i32,
    /// One of the XACT_ID numbers: the type of the labels, i32, i64 or u32.
    pub label_type: i32,
    /// `[N, V]`, read: the logits. xact_cross_entropy_forward_with_gradient overwrites them with their gradients.
    pub logits: xact_logits_matrix,
    /// `[N, V]`, written by xact_cross_entropy_backward: the gradients of the logits, 0 in columns that are no classes.
    /// It may be the same matrix as `logits`.
    pub dlogits: xact_logits_matrix,
    /// `[N]` of `label_type`, read: the class of each row, or xact_cross_entropy.ignore_index.
    pub labels: *const c_void,
    /// `[N]` or null, read: the weights of the rows.
    pub weights: *const f32,
    /// Null, or the strategy and the ids from which Goldfish decides which rows to drop; one id for each row.
    pub decision: *const xact_decision,
    /// If the columns are spread over ranks: the class of this rank's first column. Only
    /// xact_cross_entropy_partial_stats, xact_cross_entropy_finish and xact_cross_entropy_backward use it.
    pub first_class: u64,
    /// If the columns are spread over ranks: the number of classes of all ranks together; else 0.
    pub classes: u64,
    /// Read where gradients are computed: the gradient with respect to the loss of row r is dloss[r·dloss_stride]. Null
    /// means 1 for every row.
    pub dloss: *const f32,
    /// The stride of `dloss` in elements: 0 if all rows share one number, 1 if it is `[N]` and contiguous.
    pub dloss_stride: i64,
    /// Null, or one number, the divisor. xact_cross_entropy_backward: usually `normalizer` of the forward's summary; null
    /// means 1. The other functions: it replaces the normalizer that xact_cross_entropy.normalizer selects.
    pub normalizer: *const f32,
    /// `[N]` or null, written: the weighted loss of each row, not divided by the normalizer. A masked row has 0, a row
    /// whose label is no class has NaN.
    pub loss: *mut f32,
    /// `[N]` or null, written: the z-loss term of each row's loss.
    pub z_loss: *mut f32,
    /// `[N]` or null, written: log Σ e^logit of each row; a masked row has 0.
    pub lse: *mut f32,
    /// `[N]` or null, written: the class of the largest logit of each row, the first if several are equal; a masked row
    /// has -1.
    pub argmax: *mut i32,
    /// xact_cross_entropy_saved_bytes bytes or null, aligned to 4, written: the values that a backward needs, or that
    /// are gathered from all ranks. It is required by xact_cross_entropy_partial_stats.
    pub saved: *mut c_void,
    /// Written: the totals. It is required by all functions that compute losses. For a device, device memory.
    pub summary: *mut xact_cross_entropy_summary,
    /// `[ranks, saved_bytes]`, aligned to 4, read by xact_cross_entropy_backward and xact_cross_entropy_finish: the
    /// `saved` bytes of the forward, or of all ranks in the order of the ranks.
    pub gathered: *const c_void,
    /// The number of ranks in `gathered`; 0 means 1.
    pub ranks: u64,
    /// At least xact_cross_entropy_workspace_bytes bytes of device memory, aligned to 8, for all functions but
    /// xact_cross_entropy_backward. No other work may use it until the call's work has completed. Host: not used.
    pub workspace: *mut c_void,
    /// The size of `workspace` in bytes.
    pub workspace_bytes: u64,
    /// The maximum number of blocks to launch, XACT_BLOCKS_ALL or XACT_BLOCKS_RESIDENT. Host: not used.
    pub blocks: i32,
    /// xact_cross_entropy_forward_with_gradient on devices with clusters of blocks: the minimum number of blocks that
    /// share a row; 0 means as few as the row fits into. Host: not used.
    pub cluster: u32,
    /// xact_cross_entropy_partial_stats: 1 if xact_cross_entropy_finish will compute the argmax.
    pub with_argmax: u64,
}

/// The tensors of a language model's head: the logits of the loss are the products of hidden states `[N, H]` and weights
/// `[V, H]`, computed in chunks of rows, so that `[N, V]` logits are never in memory. Rows that need no logits are not
/// multiplied.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct xact_linear_cross_entropy_args {
    /// sizeof(xact_linear_cross_entropy_args).
    pub size: u64,
    /// The arguments of the loss: `rows` is N, `cols` is V, the number of rows of the weights, and `dtype` is the type of the
    /// hidden states, the weights and the gradient of the hidden states. `logits` and `dlogits` are not used.
    pub loss: *const xact_cross_entropy_args,
    /// H, the number of columns of the hidden states and of the weights.
    pub hidden_cols: u64,
    /// `[N, H]`, read: the hidden states.
    pub hidden: xact_logits_matrix,
    /// `[V, H]`, read: the weights. Rows that are no classes are not read.
    pub weight: xact_matrix,
    /// `[N, H]` or null, written where gradients are computed: the gradient of the hidden states, 0 in masked rows. If the
    /// classes are spread over ranks, the sum over the ranks is the gradient.
    pub d_hidden: xact_logits_matrix,
    /// `[V, H]` of `d_weight_dtype` or null, written where gradients are computed: the gradient of the weights.
    pub d_weight: xact_matrix,
    /// One of the XACT_DTYPE numbers: the type of `d_weight`, f32 or that of the weights; 0 means f32.
    pub d_weight_dtype: i32,
    /// One of the XACT_LOGITS numbers: the type of the logits of a chunk.
    pub logits: i32,
    /// 1: the gradient of the weights is added to `d_weight`, whose rows that are no classes are not touched; 0: it overwrites
    /// them, with 0 in rows that are no classes.
    pub accumulate: u64,
    /// Null, or the rows that may be kept, in any order; -1 is padding. A row that is not in the list has the weight 0. An
    /// empty list has another address than null, or a count of its padding.
    pub kept_rows: *const i32,
    /// The length of `kept_rows`.
    pub kept_count: u64,
    /// The most bytes that the call uses besides the caller's tensors; 0 means 1 GiB.
    pub max_bytes: u64,
    /// The number of rows of a chunk; 0 means as many as fit into `max_bytes`.
    pub chunk_rows: u64,
}
