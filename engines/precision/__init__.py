"""A float32 graph in FP16 or INT8."""
