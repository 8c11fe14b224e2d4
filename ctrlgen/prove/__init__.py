"""Engines that decide claims. A claim says nothing of how it is decided; an engine knows nothing of certificates."""
