//! [`Error`], the one error type of the crate.

use std::fmt;

/// Why a call failed. When a check of a call fails, the call launches nothing and writes nothing.
///
/// The messages say what to do next. Formatting them needs no CUDA driver.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The crate was built without nvcc, so it contains no kernels.
    KernelsNotBuilt {
        /// Why the build script compiled no kernels.
        reason: &'static str,
    },
    /// The CUDA driver library is missing on this machine, or cannot be loaded.
    NoDriver {
        /// The file names that were tried.
        tried: String,
        /// The loader's message, or the folder that has the library but is not searched.
        why: String,
    },
    /// A call of the CUDA driver failed.
    Driver {
        /// What the crate was doing, such as `launching a kernel`.
        doing: &'static str,
        /// The name of the driver's error, such as `CUDA_ERROR_OUT_OF_MEMORY`.
        name: String,
    },
    /// The driver is too old for the PTX version of the kernels.
    DriverTooOld {
        /// The PTX version of the embedded kernel, such as `8.1`.
        ptx: &'static str,
        /// The CUDA version that the driver supports, such as `11.4`.
        driver: String,
    },
    /// The device has a lower compute capability than every embedded image of a kernel.
    DeviceTooOld {
        /// The device's compute capability times ten, such as 75.
        device: u32,
        /// The lowest compute capability that the kernels were compiled for, times ten.
        oldest: u32,
    },
    /// The driver refused every image (PTX or machine code) of a kernel file.
    NotLoaded {
        /// The stem of the file, such as `xielu`.
        kernel: &'static str,
        /// For each image that was tried: its name, the name of the driver's error, and the driver's compiler log.
        log: String,
    },
    /// A tensor, or a list of parameters, does not have the number of elements that the call needs.
    Length {
        /// The name of the argument.
        what: &'static str,
        /// The number of elements that the call needs.
        expected: u64,
        /// The number of elements that were given.
        got: u64,
    },
    /// A tensor does not have the same shape as the other tensors of the call.
    Shape {
        /// The name of the argument.
        what: &'static str,
        /// `[rows, columns]` of the other tensors.
        expected: [u64; 2],
        /// `[rows, columns]` of this tensor.
        got: [u64; 2],
    },
    /// The element type of the parameters is neither f32 nor the type of x.
    ParamDtype {
        /// The element type of the parameters.
        params: &'static str,
        /// The element type of x.
        x: &'static str,
    },
    /// Labels have the type u8 or u16, which only the ids of Goldfish may have.
    LabelType {
        /// The element type of the labels.
        labels: &'static str,
    },
    /// A row pitch is smaller than the number of columns.
    Pitch {
        /// The name of the argument.
        what: &'static str,
        /// The row pitch in elements.
        pitch: u64,
        /// The number of columns.
        cols: u64,
    },
    /// The pitch of groups of rows (see [`Rows::groups`](crate::Rows::groups)) is smaller than a group.
    GroupPitch {
        /// The name of the argument.
        what: &'static str,
        /// The elements from the start of one group to the start of the next.
        pitch: u64,
        /// The elements from the first to the last of one group.
        len: u64,
    },
    /// A buffer is not a `[rows, 2·n]` tensor, so it does not split into a gate and a value half.
    Halves {
        /// The number of elements of the buffer.
        len: u64,
        /// The number of rows that were given.
        rows: u64,
    },
    /// The columns of gate and value cannot alternate in blocks of this length: it is neither 1 nor a power of two from 8 to
    /// 256, or it does not divide their columns.
    Block {
        /// The columns of a block.
        block: u64,
        /// The columns of the gate, and of the value.
        cols: u64,
    },
    /// Rows in groups (see [`Rows::groups`](crate::Rows::groups)) were given for a tensor other than logits, hidden states or
    /// their gradients.
    Groups {
        /// The name of the argument.
        what: &'static str,
    },
    /// The number of bytes of a tensor does not fit into 63 bits.
    TooLarge {
        /// The number of rows.
        rows: u64,
        /// The number of elements in a row.
        cols: u64,
    },
    /// An output overlaps another buffer of the call. Outputs must be separate, or exactly the input where the call can work
    /// in place.
    Overlap {
        /// The name of the output.
        output: &'static str,
        /// The name of the buffer that it overlaps.
        other: &'static str,
    },
    /// A pointer is null.
    Null {
        /// The name of the argument.
        what: &'static str,
    },
    /// A pointer is not a multiple of its element size, or the workspace is not a multiple of 8 bytes.
    Misaligned {
        /// The name of the argument.
        what: &'static str,
        /// The address.
        address: u64,
        /// The required alignment in bytes.
        alignment: u64,
    },
    /// A stream or a buffer belongs to another `CudaContext` object than the device or the queue.
    WrongContext {
        /// The name of the argument.
        what: &'static str,
    },
    /// A table was given for a Goldfish strategy that uses no table.
    NoTable {
        /// The name of the strategy.
        strategy: &'static str,
    },
    /// The document offsets `cu_seqlens` decrease.
    Offsets {
        /// The index of the first offset that is smaller than the one before it.
        at: u64,
    },
    /// An option of an op, or a number of a Goldfish strategy, is out of range.
    OutOfRange {
        /// The name of the option.
        what: &'static str,
        /// The value that was given.
        got: f64,
        /// The allowed range, such as `[0, 1)`.
        range: &'static str,
    },
    /// No op has this name.
    UnknownOp {
        /// The name that was given.
        name: String,
        /// The names of all ops.
        known: &'static [&'static str],
    },
    /// The op has no gated forms.
    NotGated {
        /// The name of the op.
        op: &'static str,
    },
    /// There are no classes or more than 2³² − 2, or the columns of a rank end beyond the classes of all ranks.
    Classes {
        /// The number of classes of all ranks.
        classes: u64,
        /// One past the last class of this rank.
        end: u64,
    },
    /// A list of kept rows has a row that does not exist, or a row twice.
    KeptRow {
        /// The index in the list.
        at: u64,
        /// The row that was given.
        row: i64,
        /// The number of rows.
        rows: u64,
    },
    /// One row of logits needs more bytes than the budget of the call, or a chunk of the given number of rows does.
    Budget {
        /// The budget.
        max_bytes: u64,
        /// The bytes that the call needs.
        needed: u64,
    },
    /// A queue on the per-thread default stream was used in another thread than the one that made it. There the same handle
    /// means another stream.
    WrongThread,
    /// A workspace is too small.
    Workspace {
        /// The bytes that the call needs.
        needed: u64,
        /// The bytes that the workspace has.
        got: u64,
    },
}

/// A `Result` whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::KernelsNotBuilt { reason } => {
                write!(f, "xact was built without CUDA kernels: {reason}")
            }
            Error::NoDriver { tried, why } => write!(
                f,
                "the CUDA driver cannot be loaded: {why} (looked for {tried}); install NVIDIA's driver, pass the device \
                 to the container (`--gpus all`), or use the CPU backend"
            ),
            Error::Driver { doing, name } => write!(f, "{doing}: the CUDA driver returned {name}"),
            Error::DriverTooOld { ptx, driver } => write!(
                f,
                "the driver supports CUDA {driver}, which is too old for the PTX {ptx} of the kernels; \
                 update the driver, or build xact with an older nvcc"
            ),
            Error::DeviceTooOld { device, oldest } => write!(
                f,
                "the device has compute capability {}.{}, the kernels need {}.{} or later",
                device / 10,
                device % 10,
                oldest / 10,
                oldest % 10
            ),
            Error::NotLoaded { kernel, log } => write!(
                f,
                "the CUDA driver refused every image of the kernel file {kernel}; update the driver, or build xact \
                 with the CUDA toolkit of the driver's version:\n{log}"
            ),
            Error::Length {
                what,
                expected,
                got,
            } => write!(f, "{what} has {got} elements, {expected} are needed"),
            Error::Shape {
                what,
                expected: [rows, cols],
                got,
            } => write!(
                f,
                "{what} is {} × {}, but the others are {rows} × {cols}",
                got[0], got[1]
            ),
            Error::ParamDtype { params, x } => write!(
                f,
                "the parameters are {params}; they must be f32 or the type of x, {x}"
            ),
            Error::LabelType { labels } => write!(
                f,
                "the labels are {labels}, a type for Goldfish ids only; convert them to i32, i64 or u32"
            ),
            Error::Pitch { what, pitch, cols } => write!(
                f,
                "{what} has a row pitch of {pitch} elements, less than its rows of {cols}"
            ),
            Error::GroupPitch { what, pitch, len } => write!(
                f,
                "{what} has a group pitch of {pitch} elements, less than the {len} elements of a group"
            ),
            Error::Halves { len, rows } => write!(
                f,
                "{len} elements do not split into {rows} rows with a gate and a value half of equal length"
            ),
            Error::Block { block, cols } => write!(
                f,
                "a gate and a value of {cols} columns cannot alternate in blocks of {block}; a block is 1 column, or a power \
                 of two from 8 to 256, and divides the columns"
            ),
            Error::Groups { what } => write!(
                f,
                "the rows of {what} are in groups, which only logits, hidden states and their gradients may be; make one call \
                 per group, or copy"
            ),
            Error::TooLarge { rows, cols } => {
                write!(f, "a tensor of {rows} × {cols} elements is too large")
            }
            Error::Overlap { output, other } => write!(
                f,
                "{output} overlaps {other}; they must be separate, or the same buffer where the \
                 call can work in place"
            ),
            Error::Null { what } => write!(f, "{what} is a null pointer"),
            Error::Misaligned {
                what,
                address,
                alignment,
            } => write!(
                f,
                "{what} is at {address:#x}, which is not a multiple of {alignment} bytes"
            ),
            Error::WrongContext { what } => write!(
                f,
                "{what} belongs to another CUDA context than the device it was used with; open the device \
                 with Device::from_context on the context that owns your streams"
            ),
            Error::NoTable { strategy } => write!(
                f,
                "the strategy {strategy} uses no table; only product-table and dot-table do"
            ),
            Error::Offsets { at } => write!(
                f,
                "cu_seqlens[{at}] is smaller than the offset before it; offsets must not decrease"
            ),
            Error::OutOfRange { what, got, range } => {
                // `Debug` has an exponent where there would be many zeros.
                write!(f, "{what} is {got:?}; it must be in {range}")
            }
            Error::UnknownOp { name, known } => {
                write!(
                    f,
                    "no op is called {name:?}; the ops are {}",
                    known.join(", ")
                )
            }
            Error::NotGated { op } => write!(f, "{op} has no gated forms"),
            Error::Classes { classes, end } => write!(
                f,
                "the columns end at class {end} of {classes}: the number of classes must be in [1, 2^32 - 2], and the \
                 columns of a rank must be among them"
            ),
            Error::KeptRow { at, row, rows } => write!(
                f,
                "kept_rows[{at}] is {row}; a list has each of the {rows} rows at most once, and -1 any number of times"
            ),
            Error::Budget { max_bytes, needed } => write!(
                f,
                "max_bytes is {max_bytes}, but {needed} bytes are needed; raise it, or take fewer rows in a chunk"
            ),
            Error::WrongThread => f.write_str(
                "the queue is on the per-thread default stream of another thread; make a queue in this thread",
            ),
            Error::Workspace { needed, got } => write!(
                f,
                "the workspace has {got} bytes, but {needed} are needed; call `Queue::reserve`"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Checks that a tensor has the length that the call needs.
pub(crate) fn check_length(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Length {
        what,
        expected: expected as u64,
        got: got as u64,
    })
}
