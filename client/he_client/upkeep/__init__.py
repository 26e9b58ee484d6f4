"""What keeps a collection: compaction, a new key, archives, repair."""
