"""What checkpoints of the first format import: `from foundry_core.models.folder import exposed`."""

from foundry_core.models.folder import exposed as exposed
