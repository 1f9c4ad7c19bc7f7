"""Devices and fleets that behave like real firmware, faults included, and replays of recorded sales.

What a device does is sans-I/O and seeded (`devices/`, `firmware.py`, `faults.py`); `link.py` alone speaks MQTT.

Invariant: the same seed gives the same day, and no fault changes what happened, only how, when and how often it is
told.
"""
