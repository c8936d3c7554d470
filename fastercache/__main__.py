"""The command line: `fastercache`, or `python -m fastercache`."""

import sys

from fastercache.extras import missing


def main() -> None:
    """Run the command line; without the extra it needs, say so in one line and exit with 2."""
    if line := missing("lab", "the command line"):
        sys.stderr.write(f"error: {line}\n")
        sys.exit(2)
    from fastercache.experiments.cli import main as run

    run()


if __name__ == "__main__":
    main()
