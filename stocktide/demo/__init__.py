"""The demo: the whole path on one machine, on embedded defaults, with a fault in the middle and a proof at the end.

Nothing here is special to the demo but the arrangement: the brokers, workers, agents and devices are the product's own,
each in its own process, talking over real sockets.
"""
