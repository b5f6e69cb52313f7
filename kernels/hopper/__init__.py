"""Grouped matmuls of experts on NVIDIA Hopper (sm_90a), in Pallas Mosaic GPU; docs/kernels.md describes the scheme."""
