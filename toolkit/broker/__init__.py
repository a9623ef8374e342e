"""A broker for a fleet: certificates, passwords, an access list and a configuration for mosquitto."""
