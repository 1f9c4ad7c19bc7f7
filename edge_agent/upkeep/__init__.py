"""The ledger's file looked after: copied, checked, its log kept small."""
