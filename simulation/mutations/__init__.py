"""Mutation tests of the simulator: planted bugs, and the proof that each is found."""
