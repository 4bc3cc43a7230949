//! The references, compared with independent sources. They need no device and no kernels.

mod activations;
mod cross_entropy;
mod goldfish;
mod linear_cross_entropy;
