"""The command line: `samestep.cli.main` runs it."""

from samestep.cli.app import main

__all__ = ["main"]
