"""Pictures and page parts."""
