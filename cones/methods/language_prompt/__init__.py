"""GLIP's own prompt tuning."""
