"""Roll-outs: a bundle to many devices over MQTT, canaries first."""
