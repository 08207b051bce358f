"""Checks of the group packaging."""
