"""Tip-Adapter."""
