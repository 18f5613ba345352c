"""Where evidence comes from on real machines, and the interface of every source."""
