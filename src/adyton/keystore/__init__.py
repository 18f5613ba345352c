"""What the owner has at rest: keys, approvals and the audit record, sealed, on SQLite or PostgreSQL."""
