"""Synthetic rooms: geometry, furniture, materials, layout, shading."""

from m2h_deploy.data.rooms.render import render_room

__all__ = ["render_room"]
