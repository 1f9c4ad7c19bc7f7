"""The HTTP API on the store: stock, movements, gateways.

Invariant: every query names its tenant. Invariant: no SQL here.
"""
