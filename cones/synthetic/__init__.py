"""The generated world."""
