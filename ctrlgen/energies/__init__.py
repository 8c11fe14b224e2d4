"""Energies: the controller blocks, their family and their algebra."""
