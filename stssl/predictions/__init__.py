"""Predict the classes or compute the features of patches from a store, a table, a folder or a scene. Write a table.

`patches` reads patches from stores and archives, `inputs` finds out what an input is, and `preparation` checks that
patches fit a model. `predicted_table` writes class probabilities, and `embedding` writes features. `geoparquet` writes
both as GeoParquet.
"""
