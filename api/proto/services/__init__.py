"""Messages and methods of the services that clients of the daemon call."""
