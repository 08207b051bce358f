"""From YAML to `ExperimentConfig`; `load_config` reports every problem of a file at once. Light."""
