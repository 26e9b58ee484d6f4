"""Who calls, what policies let them do, and how much of it."""
