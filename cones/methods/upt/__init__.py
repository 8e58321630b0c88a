"""Unified Prompt Tuning (UPT)."""
