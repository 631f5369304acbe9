"""Run the command line: its tables and progress bars, the quickstart, submission to a cluster."""
