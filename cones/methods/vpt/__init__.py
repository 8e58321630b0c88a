"""Visual Prompt Tuning (VPT)."""
