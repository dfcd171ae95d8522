"""Proxy plugins: parts that another process serves over gRPC, as containerd's."""
