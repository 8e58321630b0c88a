"""Concepts in use, with their base model open."""
