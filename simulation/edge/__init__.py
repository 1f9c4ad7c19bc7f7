"""Gateways, disks, devices and links of a simulated universe."""
