"""Studies: many runs that differ in a grid of settings, their conditions checked."""
