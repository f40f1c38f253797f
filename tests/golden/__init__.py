"""Golden measurements of the published network, and the weights that they were made with."""
