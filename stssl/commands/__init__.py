"""Run the command line `stssl`. `cli.py` lists the subcommands, and files such as `data_commands.py` define them.

`arguments.py` checks and parses arguments. `terminal.py` has the console for messages. `doctor.py` examines the
machine. `quick_start.py` runs all steps on generated data. `submission.py` submits a job to a cluster.
"""
