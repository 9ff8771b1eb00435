"""`python -m edgewise` and the `edgewise` command."""

from __future__ import annotations

import io
import sys

from edgewise.cli.app import run


def main() -> None:
    """Run the command line and leave with its exit code: 0, 2 (the user can fix it), 70 (we must), 130 (Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that knows no micro sign shows a question mark; it does not lose a result.
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
