"""Predict maps of whole scenes: read windows of a scene, classify each by a student, blend, write a GeoTIFF."""
