"""State folders that a release has written, and later ones drain."""
