"""Layers around the encrypted search that protect what it is made from; each by itself, none needed by another."""
