"""Concept Embedding Search (ConES)."""
