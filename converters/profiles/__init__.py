"""The graph profiles: what differs between graphs for Linux boards and for microcontrollers."""
