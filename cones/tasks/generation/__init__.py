"""New pictures of a subject or in a style."""
