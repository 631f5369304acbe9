"""Make the console to which all subcommands write messages."""

from rich.console import Console

console = Console(stderr=True)
"""Console that writes to stderr: stdout has only results, such as paths, for other programs."""
