"""Describe trained networks inside their weights files, and load them without the data or recipe of their training."""
