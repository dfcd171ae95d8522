"""Messages and methods between a daemon and its shims."""
