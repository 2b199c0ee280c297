"""``python -m hwsearch``: the command line."""

from hwsearch.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
