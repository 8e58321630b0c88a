"""Task Residual."""
