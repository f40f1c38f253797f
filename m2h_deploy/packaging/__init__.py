"""What other programs need of a bundle: C++ sources, a Triton repository, Mono-Hydra's file."""
