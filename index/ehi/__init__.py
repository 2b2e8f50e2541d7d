"""Rows filed, and queries routed, by a learned tree. Serving needs numpy and the kernels alone."""
