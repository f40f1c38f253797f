"""The parts of the synthetic rooms: geometry, furniture, layout, shading."""
