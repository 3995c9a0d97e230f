"""What is simple and must be beaten: a file a kind of data."""
