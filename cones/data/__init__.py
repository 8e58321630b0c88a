"""Pictures as records: read, checked, divided into splits, written and opened again."""
