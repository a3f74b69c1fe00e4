"""The program: every command, those of the demo included. `receiver …` and `python -m receiver …` start here."""

from receiver.cli.app import app, main
from receiver.demo import simulate

__all__ = ["app", "main"]

simulate.register(app)

if __name__ == "__main__":
    main()
