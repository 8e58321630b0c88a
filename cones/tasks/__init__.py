"""What a concept is for: one folder a task, with the same files in each."""
