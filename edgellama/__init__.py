"""Weak devices on a home network answer together from one language model."""

__version__ = "0.1.0"
