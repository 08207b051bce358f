"""Run the `foundry` command as `python -m foundry_core.cli`."""

import sys

from foundry_core.cli import main

sys.exit(main())
