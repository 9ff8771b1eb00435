"""The records of one run in one SQLite file: append-only, one transaction a record.

A process that is killed at any moment leaves every finished record readable, and the next process finds it under the
same stage and key.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from edgewise.errors import OutputError
from edgewise.records.codec import Record, decode, encode

T = TypeVar("T", bound=Record)

STORE_SCHEMA = 1
"""Version of the table and of the records in it."""

_TABLE = """
CREATE TABLE IF NOT EXISTS records (
    id     INTEGER PRIMARY KEY,
    stage  TEXT NOT NULL,
    key    TEXT NOT NULL,
    made   TEXT NOT NULL,
    body   BLOB NOT NULL
)
"""
_INDEX = "CREATE INDEX IF NOT EXISTS records_by_key ON records (stage, key, id)"


class Store:
    """Records by stage and key; of several under one key the newest counts.

    Args:
        path: The file; it is created where it does not exist and `writable` is given.
        writable: False opens the file to read it alone: it may lie where nothing can be written.

    Raises:
        OutputError: If the file cannot be opened or written, is not a store, or was written by a newer edgewise.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        with self._mapped():
            mode = "rwc" if writable else "ro"
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}", isolation_level=None, uri=True
            )
            # FULL: a record that `put` returned from survives a power cut, too.
            self._connection.execute("PRAGMA synchronous = FULL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version > STORE_SCHEMA:
                raise OutputError(
                    f"`{path}` holds records of schema {version}; this edgewise reads up to {STORE_SCHEMA}.",
                    hint="Use the edgewise that wrote it, or another output directory.",
                )
            if writable:
                self._connection.execute(_TABLE)
                self._connection.execute(_INDEX)
                self._connection.execute(f"PRAGMA user_version = {STORE_SCHEMA}")

    def put(self, stage: str, key: str, record: Record) -> None:
        """Append one record and return when it is on the disk.

        Raises:
            OutputError: If it cannot be written; nothing of it is then stored.
        """
        made = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._mapped():
            self._connection.execute(
                "INSERT INTO records (stage, key, made, body) VALUES (?, ?, ?, ?)", (stage, key, made, encode(record))
            )

    def put_all(self, records: Iterable[tuple[str, str, Record]]) -> None:
        """Append several records, each with its stage and key, in one transaction: all of them or none.

        Raises:
            OutputError: If they cannot be written; nothing of them is then stored.
        """
        made = datetime.now(UTC).isoformat(timespec="milliseconds")
        rows = [(stage, key, made, encode(record)) for stage, key, record in records]
        with self._mapped():
            self._connection.execute("BEGIN")
            try:
                self._connection.executemany("INSERT INTO records (stage, key, made, body) VALUES (?, ?, ?, ?)", rows)
                self._connection.execute("COMMIT")
            except sqlite3.DatabaseError:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def get(self, stage: str, key: str, kind: type[T]) -> T | None:
        """Return the newest record of `stage` and `key`, or None.

        Raises:
            OutputError: If the file is damaged or the record is of another kind.
        """
        with self._mapped():
            row = self._connection.execute(
                "SELECT body FROM records WHERE stage = ? AND key = ? ORDER BY id DESC LIMIT 1", (stage, key)
            ).fetchone()
            return None if row is None else decode(row[0], kind)

    def get_all(self, stage: str, kind: type[T]) -> list[T]:
        """Return all records of `stage`, whatever their keys, oldest first.

        Raises:
            OutputError: If the file is damaged or a record is of another kind.
        """
        with self._mapped():
            rows = self._connection.execute("SELECT body FROM records WHERE stage = ? ORDER BY id", (stage,)).fetchall()
            return [decode(body, kind) for (body,) in rows]

    def recall(self, stage: str, key: str, kind: type[T], make: Callable[[], T]) -> T:
        """Return the stored record, or make it, store it and return it."""
        stored = self.get(stage, key, kind)
        if stored is not None:
            return stored
        record = make()
        self.put(stage, key, record)
        return record

    def count(self, stage: str) -> int:
        """Return how many records `stage` has, older ones under the same key included."""
        with self._mapped():
            row = self._connection.execute("SELECT COUNT(*) FROM records WHERE stage = ?", (stage,)).fetchone()
            return int(row[0])

    def spans(self, stage: str) -> list[float]:
        """Return for each record of `stage` the seconds from it to the last record before the next one of that stage.

        Every record knows when it was made, so this is how long each session lasted, even one that was killed.
        """
        with self._mapped():
            rows = self._connection.execute("SELECT stage, made FROM records ORDER BY id").fetchall()
        lengths: list[float] = []
        began = None
        for name, made in rows:
            now = datetime.fromisoformat(made)
            if name == stage:
                began = now
                lengths.append(0.0)
            elif began is not None:
                # The system's clock may have been set back in between.
                lengths[-1] = max(lengths[-1], (now - began).total_seconds())
        return lengths

    def close(self) -> None:
        """Close the file. A store that is not used any more need not be closed: nothing is buffered."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise OutputError(
                f"The run's records in `{self.path}` have to be readable and writable, but: {error}.",
                hint="Free disk space or choose another directory with `--out`; records that were finished are kept.",
            ) from error
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            raise OutputError(
                f"A record in `{self.path}` does not fit this version of edgewise: {error}.",
                hint="Start again in another directory, or with `--overwrite`.",
            ) from error
