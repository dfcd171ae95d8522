"""Workloads that ask, nemeses that harm, checkers that judge. No room imports it."""
