"""One page on which a fleet is watched, asked and linked; a client of its broker like any other."""
