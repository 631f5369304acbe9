"""Run the command line `stssl` as `python -m stssl`."""

from stssl.commands.cli import main

if __name__ == "__main__":
    main()
