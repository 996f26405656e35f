"""A distributed hyperparameter study for interpretable gradients."""

__version__ = "0.1.0"
