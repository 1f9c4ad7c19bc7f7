"""What every statement stands on: connections, errors, migrations, the SQL loader, the audit log, leases."""
