"""Hold the console that all subcommands write messages to."""

from rich.console import Console

console = Console(stderr=True)
"""Writes to stderr: stdout has only results, such as paths, for other programs."""
