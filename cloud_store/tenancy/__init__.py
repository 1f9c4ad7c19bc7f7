"""Tenants: registry, quotas, keys, permissions, database users."""
