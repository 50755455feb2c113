"""python -m samestep.cli: what the command `samestep` does."""

from samestep.cli.app import main

main()
