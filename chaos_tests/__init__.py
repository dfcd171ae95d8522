"""Workloads that ask, nemeses that harm, checkers that judge. No room imports it.

For other projects' tests: `pytest_plugins = "holdfast.chaos"`, see `plugin.py`.
"""

pytest_plugins = ("holdfast.chaos.plugin",)  # what pytest looks for; imports nothing by itself
