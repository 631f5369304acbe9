"""Predict maps of whole scenes (large images): classify overlapping windows with a student network, and blend them."""
