"""What a whole picture shows."""
