"""Who restarts whom: child specs, strategies, restart intensity, backoff, crash reports."""
