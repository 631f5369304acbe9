"""Predict and embed patches: read them from a store, a table, a folder or a scene, and write a table of what came out.

`patches` reads patches from anywhere, `inputs` finds out what an input is, and `preparation` checks that patches fit a
model. `predicted_table` writes class probabilities, and `embedding` writes features. `geoparquet` writes both as
GeoParquet.
"""
