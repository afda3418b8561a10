"""The engine of `compare_gradients.py`."""
