"""Words, guards and paths; it decides no result."""
