"""Fine-tuning: one file a kind."""
