"""The merge loop of a worker: inbox, batches, acknowledgements, throttle, presence."""
