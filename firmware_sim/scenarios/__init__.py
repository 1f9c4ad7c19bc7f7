"""Scenarios: a fleet and its faults, described in a file."""
