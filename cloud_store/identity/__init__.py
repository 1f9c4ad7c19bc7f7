"""Claims, certificates and revocations, as rows."""
