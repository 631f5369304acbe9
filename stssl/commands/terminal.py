"""Define the console to which all subcommands write messages. Results, such as paths, go to stdout."""

from rich.console import Console

from stssl.base.logs import plain_printer

console = Console(stderr=True)
"""Console that writes to stderr: stdout has only results, such as paths, for other programs."""

say = plain_printer(console)
"""Shows a line to the user as it is."""
