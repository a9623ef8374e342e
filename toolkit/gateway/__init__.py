"""An HTTP server that speaks as OpenAI's does, in front of bundles or of a fleet."""
