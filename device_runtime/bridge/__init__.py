"""A microcontroller at the end of a serial port: docs/serial-protocol.md, from both sides."""
