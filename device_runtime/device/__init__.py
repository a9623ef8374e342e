"""What a device of a fleet does: requests, links, updates and health over MQTT."""
