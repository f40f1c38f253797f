"""Package a bundle for other programs: C++ sources, a Triton repository, Mono-Hydra's file."""
