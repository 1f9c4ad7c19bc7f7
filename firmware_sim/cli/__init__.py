"""`stocktide sim`: its commands."""
