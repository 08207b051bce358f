"""From YAML to `ExperimentConfig`. Light.

The YAML with its line numbers, the sections and their keys, the rules between sections, and the conversion of older
formats. `load_config` reports every problem of a file at once.
"""
