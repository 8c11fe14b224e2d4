"""Training energies: objectives, couplings and the fit."""
