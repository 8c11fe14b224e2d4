"""Plants: how a density moves under a controller."""
