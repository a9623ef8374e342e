"""What runs on a board besides the runtime: where things lie, and how the service starts."""
