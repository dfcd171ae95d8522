"""The command `containerd`, for programs that start one: its flags, its configuration, its helpers
for shims and hooks; the daemon that it runs is Holdfast."""
