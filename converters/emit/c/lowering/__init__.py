"""From the operators of a `micro` graph to the calls of the C engine."""
