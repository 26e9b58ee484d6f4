"""The server: a durable store of encrypted segments, and encrypted dot products against them. It holds no key."""
