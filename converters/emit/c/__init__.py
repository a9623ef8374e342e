"""From a `micro` graph to the model image that the C engine runs: tables and a call list, never loops."""
