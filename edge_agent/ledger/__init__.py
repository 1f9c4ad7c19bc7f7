"""The stock ledger: one SQLite file, its one writer, what is derived from its entries, and what is read from it."""
