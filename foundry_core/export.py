"""The module that checkpoints of the first format import: `from foundry_core.export import exposed`."""

from foundry_core.models.adapter import auto_classes as exposed

__all__ = ["exposed"]
