"""Every way in: the embedded host, gRPC and ttrpc, the daemon, the CLI. Decides nothing."""
