//! The tools, run as their users run them.

#[cfg(feature = "cuda")]
mod apply;
mod goldfish_audit;
#[cfg(feature = "cuda")]
mod verify;
