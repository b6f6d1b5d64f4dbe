"""`python -m local_mode`: the same as `local-endpoint`. Next: `cli.py`."""

from local_mode.cli import main

if __name__ == "__main__":
    main()
