"""The tracks of BabyLM 2026 that train on text alone: how much text, and which checkpoints.

Source: strict/README.md of github.com/babylm-org/babylm-eval at 45fe2c1 ("Submission Requirements"), and the lists of
checkpoints in strict/evaluation_pipeline/collate_preds.py. They are those of 2025.
"""

from __future__ import annotations

from dataclasses import dataclass

MILLION = 10**6


@dataclass(frozen=True)
class Track:
    """A track.

    Attributes:
        name: Its name in the pipeline.
        corpus: Millions of words that the text has at most.
        seen: Millions of words that are seen at most, repetitions included.
    """

    name: str
    corpus: int
    seen: int

    @property
    def checkpoints(self) -> dict[str, int]:
        """The words that the model has seen, in millions, at each checkpoint, by its name."""
        ten_steps = [step * size for size in (1, 10, 100) for step in range(1, 11) if step * size <= self.seen]
        return {f"chck_{millions}M": millions for millions in sorted(set(ten_steps))}


TRACKS = {track.name: track for track in (Track("strict-small", 10, 100), Track("strict", 100, 1000))}
