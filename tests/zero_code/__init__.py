"""Applications as they are, whose agents are seen without a line of code."""
