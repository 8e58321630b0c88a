"""Prefect flows over DVC's graph."""
