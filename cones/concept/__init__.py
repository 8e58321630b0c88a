"""The Concept file: a file format and nothing else."""
