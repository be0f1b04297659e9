"""Measurements of torus beside the other NBD servers of the same machine."""
