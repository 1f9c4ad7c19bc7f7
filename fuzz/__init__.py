"""Fuzzing of everything that decodes what arrives from a network."""
