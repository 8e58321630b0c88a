"""What rows are worth: evaluation, summary, report."""
