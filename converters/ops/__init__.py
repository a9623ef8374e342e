"""Readings of the network: computed in float, simulated in int8, counted, emitted as TFLite."""
