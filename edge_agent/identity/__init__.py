"""Who this gateway is: its key and certificate, how it gets the first one and the next."""
