"""Checks of the group generation."""
