"""What goes wrong between a device and its broker."""
