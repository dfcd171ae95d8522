"""Patience: how much slower than usual this machine is, an emulated one say; every limit grows."""

import os

PATIENCE = float(os.environ.get("HOLDFAST_PATIENCE", "1"))
