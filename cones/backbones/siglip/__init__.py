"""SigLIP, through transformers."""
