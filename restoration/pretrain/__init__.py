"""Supervised training from scratch of a DiffBIR-type model: VAE, cleaner, then denoiser and ControlNet."""
