"""What searches an embedding or a prompt: one file or folder a method."""
