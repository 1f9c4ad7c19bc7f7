"""A whole Stocktide on virtual time: the production state machines under every fault, replayed by one seed.

Invariant: nothing here reads a clock, a file, the environment or global randomness; the same seed and size give the
same trace, line by line.
"""
