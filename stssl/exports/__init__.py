"""Write a student (the trained network of a run) for other programs: as pt2, ONNX or torchvision file.

A model card and, for pt2 and ONNX, a STAC item lie beside the file.
"""
