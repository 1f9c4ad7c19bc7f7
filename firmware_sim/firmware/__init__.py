"""What every simulated device has inside: events without a receipt, counters, updates. Sans-I/O."""
