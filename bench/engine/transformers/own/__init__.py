"""Quantization of our own: grids and their layout, layers, kernels, and what calibrates them."""
