"""Runs the command as `python -m fmconsume`."""

from .cli import command

if __name__ == "__main__":
    command()
