"""The spilled IVF index: train, assign, search, store."""
