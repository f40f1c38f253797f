"""Golden measurements of the published network and the weights they were made with."""
