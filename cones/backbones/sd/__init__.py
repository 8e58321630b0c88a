"""Stable Diffusion, through diffusers."""
