"""Run the command line: `python -m stssl`."""

from stssl.commands.cli import main

if __name__ == "__main__":
    main()
