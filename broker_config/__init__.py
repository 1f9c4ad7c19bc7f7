"""The topic policy turned into broker configuration: Mosquitto's files, and an embedded broker for demos and tests.

Invariant: `wire_protocol.topics.TOPICS` alone decides who may publish and subscribe where; nothing here adds to it.
"""
