"""A server that lies: every lie is refused with one of our errors, or has no effect on any bit of the results."""
