"""A microcontroller at the end of a serial line: the service of a bridge, and updates that go on to the board."""
