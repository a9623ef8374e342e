"""What a fleet file says of answers: which model gives them, where else they come from, and what is kept of them."""
