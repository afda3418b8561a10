"""The engine of `benchmark.py`."""
