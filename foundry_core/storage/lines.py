"""Text files that grow by whole lines, such as metrics.jsonl. Light."""

from __future__ import annotations

from pathlib import Path

from foundry_core.storage import files


class AppendedLines:
    """A text file that grows by whole lines, each written at once.

    It is synced before a folder next to it is published: a checkpoint never resumes from a point that the log has not
    reached.
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
        """Make the appended lines survive a power loss."""
        with files.reported(self.path):
            files.disk.sync(self._file)

    def close(self) -> None:
        files.before_publishing.discard(self)
        with files.reported(self.path):
            self._file.close()


def read_appended(path: Path) -> bytes:
    """Return the content of a file of `AppendedLines`. Raises StorageError if it is unreadable or not a plain file."""
    files.require_plain(path)
    with files.reported(path, failed="read"):
        return path.read_bytes()
