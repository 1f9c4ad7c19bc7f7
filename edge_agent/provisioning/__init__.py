"""What the cloud provides this gateway with, as it stands in the ledger: twin, catalogue, firmware, retention."""
