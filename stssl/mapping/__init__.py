"""Predict maps of whole scenes: read windows, classify each by a student (network), blend, write a GeoTIFF."""
