"""Imported by every Python process at its start that has this folder on its path: see `tests/mutation.py`."""

import os

from tests.mutation import mutate_when_imported

mutate_when_imported(os.environ)
