"""Model selection: confirmations, the held-out test and the log of its openings."""
