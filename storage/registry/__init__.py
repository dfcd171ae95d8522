"""Registries: images pulled from and pushed to servers that speak the OCI distribution API."""
