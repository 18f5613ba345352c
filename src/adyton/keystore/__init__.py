"""The owner's data at rest: keys, approvals and the audit record, sealed, in SQLite or PostgreSQL."""
