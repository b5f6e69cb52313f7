"""jaxmoe: a deployment plan for Mixture-of-Experts transformers that proves itself."""

__version__ = "0.1.0"
