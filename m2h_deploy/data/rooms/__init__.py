"""Synthetic rooms: geometry, furniture, materials, layout, shading."""
