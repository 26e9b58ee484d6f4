"""What an operator does beside a server: backup, restore, check, repair, keys."""
