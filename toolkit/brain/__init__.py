"""What a desk machine does for the brain of a fleet: routers, explanations, records, energy."""
