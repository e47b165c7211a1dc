"""Benchmarks: one question per file; results as JSON and as a table."""
