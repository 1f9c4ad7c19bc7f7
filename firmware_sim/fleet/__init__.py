"""Devices with a connection, one or thousands."""
