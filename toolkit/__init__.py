"""What a person types: the command line, and everything it needs that is not conversion or runtime."""
