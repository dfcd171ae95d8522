"""What is kept: metadata and events, content, snapshots, images, leases. Knows no process."""
