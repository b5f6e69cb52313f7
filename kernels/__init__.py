"""Expert matmul kernels, each beside its reference."""
