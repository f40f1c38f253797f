"""Reading and changing ONNX graphs: files, metadata, interface, functions, sessions."""
