"""What kills, forks and starves processes, and what survives it."""
