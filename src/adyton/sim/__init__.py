"""The simulated platform: a chip that makes quotes, its maker who certifies it, and the maker's collateral service."""
