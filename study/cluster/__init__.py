"""Between this machine and a cluster: where a study runs, how it gets there, and what guards it. Imports no Ray."""
