"""MetaCLIP 2, through transformers."""
