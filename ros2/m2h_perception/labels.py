"""Label remaps: from the network's classes to those of the program that uses them, in Mono-Hydra's YAML formats."""

from m2h_deploy.label_spaces.read import read_label_remap

__all__ = ["read_label_remap"]
