"""Recorded sales, and their replay through simulated devices."""
