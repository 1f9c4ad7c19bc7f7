"""The certificate authority: X.509, signatures and the files they are kept in.

Invariant: no MQTT and no database.
"""
