"""Between this machine and a cluster: where a study runs, its submission, its password. Imports no Ray."""
