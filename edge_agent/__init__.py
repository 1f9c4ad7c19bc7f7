"""The gateway: devices in, SQLite stock ledger, uplink to the cloud, technician's command line.

Invariant: a ledger entry is appended, never updated. Invariant: nothing here needs the cloud to do its work.
"""
