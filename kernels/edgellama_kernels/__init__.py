"""Kernels for quantized transformers on a CPU: NumPy reference and numba, the same bits."""
