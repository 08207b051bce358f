"""Checks of the group cost."""
