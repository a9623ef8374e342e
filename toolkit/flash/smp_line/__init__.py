"""A board that speaks the Simple Management Protocol over a serial line: packets, answers, uploads."""
