"""CLIP, through transformers."""
