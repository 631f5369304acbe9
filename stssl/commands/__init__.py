"""Run the command line. `cli.py` defines the subcommands, and the other files have code that only they use.

`arguments.py` checks and parses arguments. `doctor.py` examines the machine. `quick_start.py` runs all steps on
generated data. `submission.py` submits a job to a cluster.
"""
