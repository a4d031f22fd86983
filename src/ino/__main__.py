"""`python -m ino` is the command `ino`."""

from ino.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
