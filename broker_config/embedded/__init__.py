"""The embedded broker: amqtt behind listeners of ours that judge every connection."""
