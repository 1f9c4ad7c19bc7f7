"""The devices: each file one kind, a checked description that tells what happens at it in a span of time.

Invariant: a device's day depends on its description, the span and its own randomness, and on nothing else.
"""
