"""The broker side of a worker: subscriptions, messages in, messages out, the end of a gateway's connection."""
