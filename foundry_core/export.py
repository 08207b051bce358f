"""What checkpoints of the first format import: `from foundry_core.export import exposed`."""
