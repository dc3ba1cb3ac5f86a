"""Jacobians of the state, their products, spectral radii, Lyapunov spectra, and the gates that explain them."""
