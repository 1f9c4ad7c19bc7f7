"""The cloud's memory: TimescaleDB schema, migrations and every SQL statement of the cloud.

Invariant: no other package contains SQL or imports psycopg. Everything here is synchronous: callers that live in an
event loop run it in a thread.
"""
