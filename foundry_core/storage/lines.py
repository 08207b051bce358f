"""Text files that grow by whole lines, such as metrics.jsonl. Light."""

from __future__ import annotations

from pathlib import Path

from foundry_core.storage import files


class AppendedLines:
    """A text file that grows by whole lines, such as metrics.jsonl; each line is handed to the kernel at once.

    They are safe on the disk when a folder beside it is published: a checkpoint never goes on from a point that the log
    has not reached.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        files.make_folders(self.path.parent)
        files.require_plain(self.path)
        with files.reported(self.path):
            self._file = files.disk.append_to(self.path)
        files.before_publishing.add(self)

    def append(self, line: str) -> None:
        data = line.encode() + b"\n"
        with files.reported(self.path, len(data)):
            files.disk.write(self._file, data)

    def sync(self) -> None:
        """Bring what was appended safely to the files.disk."""
        with files.reported(self.path):
            files.disk.sync(self._file)

    def close(self) -> None:
        files.before_publishing.discard(self)
        with files.reported(self.path):
            self._file.close()


def read_appended(path: Path) -> bytes:
    """All of a file of `AppendedLines`. Raises StorageError when it cannot be read or is no plain file."""
    files.require_plain(path)
    with files.reported(path, failed="read"):
        return path.read_bytes()
