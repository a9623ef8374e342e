"""The C99 engine for microcontrollers, and how this machine compiles it for itself."""
