"""The greenhouse on one machine: broker, sensors, model. `python -m toolkit.demo --bundle DIR`."""
