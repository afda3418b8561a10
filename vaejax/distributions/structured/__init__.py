"""Distributions whose numbers depend on each other: layers, flows, named parts."""
