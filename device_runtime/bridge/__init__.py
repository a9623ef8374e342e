"""A microcontroller at the end of a serial port: docs/reference/serial-protocol.md, from both sides."""
