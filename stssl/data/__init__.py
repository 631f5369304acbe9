"""Stores and what reads them: splits, samplers, loaders."""
