"""What an operator may see of a running server: metrics, traces, logs. No query, score, row id or key."""
