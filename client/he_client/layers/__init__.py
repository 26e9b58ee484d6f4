"""Which layers protect a search, against whom, and which of them a given use needs: what `hesearch advise` knows."""
