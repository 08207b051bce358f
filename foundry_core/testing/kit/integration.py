"""Checks of the group integration."""
