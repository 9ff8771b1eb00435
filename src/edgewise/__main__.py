"""`python -m edgewise` and the `edgewise` command: errors become exit codes here and nowhere else."""

from __future__ import annotations

import sys

from edgewise.cli.app import run


def main() -> None:
    """Run the command line and leave with its exit code: 0, 2 (the user can fix it), 70 (we must), 130 (Ctrl-C)."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
