//! The references, by whatever is independent of them. Needs no device and no kernels.

mod activations;
mod cross_entropy;
mod goldfish;
