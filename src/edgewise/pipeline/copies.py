"""Finds samples that are copies of others: they carry no news, but a bound would count them as if they did."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from edgewise.pipeline.inputs import Data, Split
from edgewise.records.codec import Record


class Copies(Record, frozen=True, kw_only=True):
    """How many certify samples equal, bit for bit, one of another set or an earlier one of their own."""

    certify: int


def count_copies(data: Data) -> Copies:
    """Count the certify samples that are copies; every sample is read once, as the model sees it."""
    seen = {digest for part in (data.calibrate, data.select) for digest in _digests(part)}
    copies = 0
    for digest in _digests(data.certify):
        copies += digest in seen
        seen.add(digest)
    return Copies(certify=copies)


def _digests(part: Split) -> Iterator[bytes]:
    for index in part.indices:
        digest = hashlib.blake2b(digest_size=16)
        for name, array in sorted(part.dataset.feeds(int(index)).items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
        yield digest.digest()
