"""From MQTT to the store and back: frames in, merge, acknowledgements out.

Invariant: an acknowledgement leaves only after the commit that it reports. Invariant: no SQL here.
"""
