"""The merge: sealed frames become rows, balances, digests and cursors in one transaction."""
