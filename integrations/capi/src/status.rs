//! The status of a call, and the text of a thread's last error.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use xact::Error;

use crate::types::*;

/// The error of a call: its status and its text.
#[derive(Debug)]
pub struct Failure {
    pub status: xact_status,
    pub text: String,
}

pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    pub fn new(status: xact_status, text: impl Into<String>) -> Failure {
        let text = text.into();
        Failure { status, text }
    }

    pub fn null(what: &'static str) -> Failure {
        Error::Null { what }.into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = match &error {
            Error::KernelsNotBuilt { .. } => XACT_ERROR_KERNELS_NOT_BUILT,
            Error::NoDriver { .. } => XACT_ERROR_NO_DRIVER,
            Error::Driver { .. } => XACT_ERROR_DRIVER,
            Error::DriverTooOld { .. } => XACT_ERROR_DRIVER_TOO_OLD,
            Error::DeviceTooOld { .. } => XACT_ERROR_DEVICE_TOO_OLD,
            Error::NotLoaded { .. } => XACT_ERROR_NOT_LOADED,
            Error::Length { .. } => XACT_ERROR_LENGTH,
            Error::Shape { .. } => XACT_ERROR_SHAPE,
            Error::ParamDtype { .. } => XACT_ERROR_PARAM_DTYPE,
            Error::LabelType { .. } => XACT_ERROR_LABEL_TYPE,
            Error::Pitch { .. } => XACT_ERROR_PITCH,
            Error::GroupPitch { .. } => XACT_ERROR_GROUP_PITCH,
            Error::Halves { .. } => XACT_ERROR_HALVES,
            Error::Block { .. } => XACT_ERROR_BLOCK,
            Error::Groups { .. } => XACT_ERROR_GROUPS,
            Error::TooLarge { .. } => XACT_ERROR_TOO_LARGE,
            Error::Overlap { .. } => XACT_ERROR_OVERLAP,
            Error::Null { .. } => XACT_ERROR_NULL,
            Error::Misaligned { .. } => XACT_ERROR_MISALIGNED,
            Error::WrongContext { .. } => XACT_ERROR_WRONG_CONTEXT,
            Error::NoTable { .. } => XACT_ERROR_NO_TABLE,
            Error::Offsets { .. } => XACT_ERROR_OFFSETS,
            Error::OutOfRange { .. } => XACT_ERROR_OUT_OF_RANGE,
            Error::UnknownOp { .. } => XACT_ERROR_UNKNOWN_OP,
            Error::NotGated { .. } => XACT_ERROR_NOT_GATED,
            Error::Classes { .. } => XACT_ERROR_CLASSES,
            Error::KeptRow { .. } => XACT_ERROR_KEPT_ROW,
            Error::Budget { .. } => XACT_ERROR_BUDGET,
            Error::WrongThread => XACT_ERROR_WRONG_THREAD,
            Error::Workspace { needed, got } => {
                // The error's own text mentions `Queue`, which is not in the C interface.
                let text = format!("the workspace has {got} bytes, {needed} are needed");
                return Failure::new(XACT_ERROR_WORKSPACE, text);
            }
            _ => XACT_ERROR_OTHER,
        };
        Failure::new(status, error.to_string())
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs the body of an exported function, and turns an error or a panic into a status.
pub fn guard(body: impl FnOnce() -> Result<()>) -> xact_status {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return XACT_OK,
        Ok(Err(failure)) => failure,
        Err(payload) => Failure::new(
            XACT_ERROR_PANIC,
            format!("a bug in xact: {}", message(&*payload)),
        ),
    };
    let text = CString::new(failure.text.replace('\0', "\u{fffd}")).unwrap_or_default();
    // While the thread exits, its LAST may already be destroyed.
    let _ = LAST.try_with(|last| last.replace(text));
    failure.status
}

/// The message of a panic.
fn message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic")
}

/// The text of the calling thread's last error.
pub fn last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}
