"""`python -m foundry_core.cli`: the `foundry` command where the script is not on the path."""

import sys

from foundry_core.cli import main

sys.exit(main())
