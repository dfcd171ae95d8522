"""Measurements: the same load on Holdfast and on Debian's containerd, side by side in one run."""
