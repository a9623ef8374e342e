"""What a person types: the command line, and everything behind it that is not conversion or runtime."""
