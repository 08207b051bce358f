"""Pages of the documentation that are made when it is built: the reference from the code, and files from elsewhere.

`docs/conf.py` calls `write_pages`. Nothing here imports torch or Sphinx.
"""

from __future__ import annotations

from docs.generator.pages import write_pages

__all__ = ["write_pages"]
