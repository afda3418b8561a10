"""Heads and families of data: pixels and counts."""
