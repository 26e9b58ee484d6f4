"""Every decision about every call, in a log that shows what was changed in it. docs/audit.md."""
