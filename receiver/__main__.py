"""The program: every command, those of the demo included. `receiver …` and `python -m receiver …` start here."""

import gc

gc.set_threshold(250_000)  # what is imported stays: to look for garbage there takes a twelfth of a start

from receiver.cli.app import app, main  # noqa: E402 - after the line above

__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
