"""`stocktide broker`: its commands."""
