"""The subcommands of `hesearch` that run through the SDK."""
