"""The engine of `collapse.py`."""
