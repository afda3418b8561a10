"""The engine of `pca_to_vae.py`."""
