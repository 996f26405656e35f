"""A specification: the study, its space, its terms, and the reader of its YAML file."""
