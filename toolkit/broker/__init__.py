"""A broker for a fleet: certificates, an access list and a configuration for mosquitto."""
