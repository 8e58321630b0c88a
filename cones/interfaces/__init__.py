"""What the rooms hand to each other."""
