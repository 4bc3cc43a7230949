//! The one error type.

use std::fmt;

/// Why a call did not happen. Nothing was launched and nothing was written when a check fails.
///
/// The messages say what to do next, and print without a driver.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The crate was compiled without nvcc, so it holds no kernels.
    KernelsNotBuilt {
        /// Why, as found at build time.
        reason: &'static str,
    },
    /// No CUDA driver library was found on this machine.
    NoDriver {
        /// The names that were looked for.
        tried: String,
        /// What the loader says of the one that is there, or where it does not look.
        why: String,
    },
    /// A call of the CUDA driver failed.
    Driver {
        /// What was being done.
        doing: &'static str,
        /// The name of the driver's error, such as `CUDA_ERROR_OUT_OF_MEMORY`.
        name: String,
    },
    /// The driver is older than the PTX that the kernels were compiled to.
    DriverTooOld {
        /// The PTX version of the embedded kernel.
        ptx: &'static str,
        /// The CUDA version that the driver supports, such as `11.4`.
        driver: String,
    },
    /// The device is older than every embedded image of a kernel.
    DeviceTooOld {
        /// The device's compute capability times ten, such as 75.
        device: u32,
        /// The oldest that the kernels were compiled for.
        oldest: u32,
    },
    /// The driver loads none of the images of a kernel file.
    NotLoaded {
        /// The stem of the file, such as `xielu`.
        kernel: &'static str,
        /// For each image that was tried its name, the name of the driver's error, and what the driver's compiler says.
        log: String,
    },
    /// A tensor does not have the length that the call needs.
    Length {
        /// The argument.
        what: &'static str,
        /// Elements needed.
        expected: u64,
        /// Elements given.
        got: u64,
    },
    /// A tensor does not have the shape of the others.
    Shape {
        /// The argument.
        what: &'static str,
        /// Rows and columns of the others.
        expected: [u64; 2],
        /// Its own.
        got: [u64; 2],
    },
    /// The element type of the parameters is neither f32 nor that of x.
    ParamDtype {
        /// The type of the parameters.
        params: &'static str,
        /// The type of x.
        x: &'static str,
    },
    /// Labels of a type that only ids may have.
    LabelType {
        /// The type of the labels.
        labels: &'static str,
    },
    /// A row pitch is smaller than the row.
    Pitch {
        /// The argument.
        what: &'static str,
        /// The pitch in elements.
        pitch: u64,
        /// The row's elements.
        cols: u64,
    },
    /// Groups of rows are closer to each other than they are long.
    GroupPitch {
        /// The argument.
        what: &'static str,
        /// The pitch of the groups in elements.
        pitch: u64,
        /// The elements from the first to the last of a group.
        len: u64,
    },
    /// A buffer does not split into a gate and a value half in each row.
    Halves {
        /// Elements of the buffer.
        len: u64,
        /// Rows it is said to have.
        rows: u64,
    },
    /// Rows that come in groups were given to a call that takes rows at one pitch.
    Groups {
        /// The argument.
        what: &'static str,
    },
    /// The tensor has more bytes than 63 bits can count.
    TooLarge {
        /// Rows.
        rows: u64,
        /// Elements in a row.
        cols: u64,
    },
    /// Two buffers overlap where neither the same buffer nor separate ones would be right.
    Overlap {
        /// The buffer that would be written.
        output: &'static str,
        /// The buffer it overlaps.
        other: &'static str,
    },
    /// A pointer is null.
    Null {
        /// The argument.
        what: &'static str,
    },
    /// A pointer is not a multiple of the size of its element.
    Misaligned {
        /// The argument.
        what: &'static str,
        /// The address.
        address: u64,
        /// What it must be a multiple of.
        alignment: u64,
    },
    /// A stream or buffer belongs to another context than the device.
    WrongContext {
        /// The argument.
        what: &'static str,
    },
    /// A table was given for a strategy that has none.
    NoTable {
        /// The strategy.
        strategy: &'static str,
    },
    /// Offsets of documents decrease.
    Offsets {
        /// The first that is smaller than the one before it.
        at: u64,
    },
    /// An option, or a number of a strategy, is out of its range.
    OutOfRange {
        /// Its name.
        what: &'static str,
        /// Its value.
        got: f64,
        /// The values that it may have.
        range: &'static str,
    },
    /// No op has this name.
    UnknownOp {
        /// The name.
        name: String,
        /// The names that there are.
        known: &'static [&'static str],
    },
    /// The op has no gated forms.
    NotGated {
        /// Its name.
        op: &'static str,
    },
    /// There are no classes, more than 32 bits count, or a rank's columns reach beyond them.
    Classes {
        /// Classes of all ranks.
        classes: u64,
        /// One past the rank's last.
        end: u64,
    },
    /// A queue on the per-thread default stream was used in another thread, where the same handle is another stream.
    WrongThread,
    /// A workspace is too small.
    Workspace {
        /// Bytes needed.
        needed: u64,
        /// Bytes it has.
        got: u64,
    },
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::KernelsNotBuilt { reason } => {
                write!(f, "xact holds no CUDA kernels: {reason}")
            }
            Error::NoDriver { tried, why } => write!(
                f,
                "the CUDA driver cannot be loaded: {why} (looked for {tried}); install NVIDIA's driver, in a container \
                 pass the device on (`--gpus all`), or use the CPU reference"
            ),
            Error::Driver { doing, name } => write!(f, "{doing}: the CUDA driver says {name}"),
            Error::DriverTooOld { ptx, driver } => write!(
                f,
                "the driver supports CUDA {driver}, but the kernels were compiled to PTX {ptx}, \
                 which is newer; update the driver, or build xact with an older nvcc"
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
                "the CUDA driver loads none of the images of the kernel {kernel}; update the driver, or build xact \
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
                "the labels are {labels}, which only ids may be; convert them to i32, i64 or u32"
            ),
            Error::Pitch { what, pitch, cols } => write!(
                f,
                "{what} has a row pitch of {pitch} elements, less than its rows of {cols}"
            ),
            Error::GroupPitch { what, pitch, len } => write!(
                f,
                "the groups of {what} are {pitch} elements apart, less than the {len} that each takes"
            ),
            Error::Halves { len, rows } => write!(
                f,
                "{len} elements are not {rows} rows of a gate and a value half of equal length"
            ),
            Error::Groups { what } => write!(
                f,
                "the rows of {what} come in groups, which only logits may; call once per group, or copy"
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
                "{what} is at {address:#x}, which is not a multiple of its element's {alignment} bytes"
            ),
            Error::WrongContext { what } => write!(
                f,
                "{what} belongs to another CUDA context than the device it was used with; open the device \
                 with Device::from_context on the context that owns your streams"
            ),
            Error::NoTable { strategy } => write!(
                f,
                "the strategy {strategy} looks nothing up in a table; give one to product-table or dot-table"
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
                    "no op is called {name:?}; there are {}",
                    known.join(", ")
                )
            }
            Error::NotGated { op } => write!(f, "{op} has no gated forms"),
            Error::Classes { classes, end } => write!(
                f,
                "columns up to class {end} of {classes}: there must be at least one class, fewer than 2^32 - 1, and \
                 a rank's must be among those of all ranks"
            ),
            Error::WrongThread => f.write_str(
                "the queue is on the default stream of another thread; make a queue in this one",
            ),
            Error::Workspace { needed, got } => write!(
                f,
                "the workspace has {got} bytes, {needed} are needed; reserve them (`Queue::reserve`)"
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
