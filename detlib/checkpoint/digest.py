"""A digest behind what ``torch.save`` writes, by which any change to the file shows.

``torch.load`` compares no checksum, and a flipped bit in a weight looks like a weight. Zip files are read from the
table at their end, wherever that is, so other software reads a file that has a digest behind it as before.
"""

import hashlib
import os
from collections.abc import Callable
from typing import IO, Any

from detlib.utils.errors import DamagedCheckpointError

__all__ = ["check_digest", "digest_of", "write_with_digest"]

MARKER = b"\ndetlib sha256 "
LENGTH = len(MARKER) + 64 + 1  # The digest in hexadecimal digits, and a newline.

# The record that a zip file ends with if it has no comment.
END_OF_ZIP = b"PK\x05\x06"
END_OF_ZIP_LENGTH = 22

BLOCK = 1 << 20


class _DigestingFile:
    """A file to write to, with the digest of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def write_with_digest(file: IO[bytes], write: Callable[[Any], Any]) -> None:
    """Call ``write`` with something that is written to in turn, as a file, and put the digest behind it."""
    digesting = _DigestingFile(file)
    write(digesting)
    file.write(_trailer(digesting.digest.hexdigest()))


def check_digest(path: str) -> bool:
    """Compare a file with its digest.

    Returns:
        whether it has one; files of other software have none.

    Raises:
        DamagedCheckpointError: it is not what was written.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(max(size - LENGTH - END_OF_ZIP_LENGTH, 0))
        end = file.read()
        # By either of the two, so that a change to one of them shows as well.
        if MARKER not in end and not end.startswith(END_OF_ZIP):
            return False
        digest = hashlib.sha256()
        file.seek(0)
        remaining = max(size - LENGTH, 0)
        while remaining > 0 and (block := file.read(min(BLOCK, remaining))):
            digest.update(block)
            remaining -= len(block)
        if file.read() == _trailer(digest.hexdigest()):
            return True
    raise DamagedCheckpointError(
        f"{path} ({size} bytes) is damaged: it is not what was written, by the digest at its end. Copy it again, or "
        "use an earlier one"
    )


def digest_of(path: str) -> str:
    """That of a whole file, to be kept elsewhere."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _trailer(hexdigest: str) -> bytes:
    return MARKER + hexdigest.encode() + b"\n"
