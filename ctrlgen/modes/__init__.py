"""Slow modes of density transport, in which it is a linear plant: on a grid, and from samples."""
