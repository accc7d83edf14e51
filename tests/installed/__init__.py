"""What is built, installed with one extra alone, as users have it."""
