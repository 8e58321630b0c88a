"""What kinds of data there are: one file each."""
