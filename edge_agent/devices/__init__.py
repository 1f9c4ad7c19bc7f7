"""The gateway's devices: messages in, receipts, configuration and firmware out."""
