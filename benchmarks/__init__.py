"""Benchmarks: what privacy costs, each figure beside its plaintext peer from the same run."""
