"""Amazon's Nitro documents: of Nitro Enclaves, and of machines with a NitroTPM."""
