"""Encrypted scores of a query: what is scanned, in what order, by which engine."""
