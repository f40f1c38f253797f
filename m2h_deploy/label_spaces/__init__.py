"""Label spaces of other programs, and how a network's classes are grouped into them."""
