"""ONNX to engine."""
