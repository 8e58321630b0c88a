"""The search loop, its checkpoints and what a row leaves."""
