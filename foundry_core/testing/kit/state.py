"""Checks of the group state."""
