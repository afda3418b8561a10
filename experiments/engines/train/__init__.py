"""The engine of `train.py`."""
