"""A model as an ONNX or LiteRT graph."""
