"""What strangers try at the key server: who has no approval, and who has stolen its TLS key."""
