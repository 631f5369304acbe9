"""Run the command line: `cli.py` defines the subcommands, and the other files what only they need.

These are progress bars and tables of scores (`progress.py`), the quickstart (`quick_start.py`) and the submission of a
job to a cluster (`submission.py`).
"""
