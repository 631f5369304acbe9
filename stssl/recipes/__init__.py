"""Describe a run as one typed tree, open the data it asks for, and build its parts."""
