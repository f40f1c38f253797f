"""Read and change ONNX graphs: files, metadata, interface, functions, sessions."""
