"""The link to the cloud: frames, twin, catalogue, firmware and commands over one MQTT connection."""
