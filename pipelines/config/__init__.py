"""From a YAML file to a pipeline that can run."""
