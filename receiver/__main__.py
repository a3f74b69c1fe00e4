"""`python -m receiver` is the command line."""

from receiver.cli.app import main

main()
