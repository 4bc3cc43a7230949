//! CUDA kernels for training language models.
