"""JSON schemas: what they mean here, their grammars, and the shortest end of an answer."""
