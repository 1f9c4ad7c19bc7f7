"""What tests and benchmarks share: real servers, gateways that make load, processes to kill, and waiting for a fact.

Invariant: no product package imports anything of this, and nothing here imports tests or bench.
"""
