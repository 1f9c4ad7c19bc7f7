"""What goes down to gateways: twins, commands, catalogue, firmware, jobs, frames of the site."""
