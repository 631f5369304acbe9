"""Describe trained networks inside their weights files, and load them without the store or recipe of their training."""
