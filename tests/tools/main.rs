//! The tools as their users meet them.

#[cfg(feature = "cuda")]
mod apply;
mod goldfish_audit;
#[cfg(feature = "cuda")]
mod verify;
