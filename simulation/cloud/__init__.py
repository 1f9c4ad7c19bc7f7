"""Workers and the database of a simulated universe."""
