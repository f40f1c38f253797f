"""Maps: depth and semantics of a moving camera, fused into a mesh and compared with the true surface."""
