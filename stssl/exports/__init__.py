"""Write a student for other programs: as pt2, ONNX or torchvision file, with a model card and a STAC item."""
