"""Checks of the group masking."""
