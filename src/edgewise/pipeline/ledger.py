"""Remembers which certify sets were opened by which runs, across runs and directories.

A certificate is valid because its samples took no part in any decision. Who looks at a certificate and starts again
with other options has used them in a decision. That cannot be forbidden, but it can be counted and shown.

The ledger lies in the user's state folder (`XDG_STATE_HOME`, by default `~/.local/state`) and never leaves the machine.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

_TABLE = "CREATE TABLE IF NOT EXISTS opened (certify TEXT, run TEXT, PRIMARY KEY (certify, run))"


def ledger_path() -> Path:
    """Return the file of this user's ledger."""
    state = os.environ.get("XDG_STATE_HOME")
    base = Path(state) if state else Path.home() / ".local" / "state"
    return base / "edgewise" / "certify-sets.sqlite"


def open_certify_set(certify_sha256: str, run: str, *, path: Path | None = None) -> int | None:
    """Record that `run` opens a certify set, and return how many other runs opened it before.

    Args:
        certify_sha256: Fingerprint of the certify set.
        run: Identity of the run; a resumed run keeps its own.
        path: File of the ledger; this user's by default.

    Returns:
        The number of other runs, or None where the ledger cannot be read or written: then nothing is known.
    """
    path = path or ledger_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=10.0)
        try:
            with connection:
                connection.execute(_TABLE)
                connection.execute("INSERT OR IGNORE INTO opened VALUES (?, ?)", (certify_sha256, run))
                row = connection.execute(
                    "SELECT COUNT(*) FROM opened WHERE certify = ? AND run <> ?", (certify_sha256, run)
                ).fetchone()
        finally:
            connection.close()
    except (OSError, sqlite3.Error):
        return None
    return int(row[0])
