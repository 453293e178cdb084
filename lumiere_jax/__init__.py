"""Lumiere-JAX: an open implementation of Lumiere (arXiv 2401.12945), text to video with a Space-Time U-Net."""
