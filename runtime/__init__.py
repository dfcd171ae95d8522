"""What runs: tasks, execs, shims, the fork server, the OCI runtime, cgroups, namespaces."""
