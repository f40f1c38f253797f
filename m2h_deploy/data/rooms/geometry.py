"""Ray casting of boxes, cylinders and ellipsoids inside a box-shaped room, vectorized over pixels.

World frame: x and y on the floor, z up, meters. A room extends from (0, 0, 0) to its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m2h_deploy.data.frame import Intrinsics
from m2h_deploy.data.rooms.materials import Material

Array = npt.NDArray[np.floating]

BOX, CYLINDER, ELLIPSOID = "box", "cylinder", "ellipsoid"


@dataclass(frozen=True, eq=False)
class Solid:
    """Convex solid. `rotation` maps local axes to world axes; the axis of a cylinder is its local z."""

    kind: str
    center: Array
    half: Array
    rotation: Array
    label: int
    instance: int
    material: Material


@dataclass(frozen=True, eq=False)
class Camera:
    """Camera in the room. The columns of `rotation` are its right, down and forward axes in world coordinates."""

    position: Array
    rotation: Array
    intrinsics: Intrinsics
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Hits:
    """First surface that each viewing ray hits; arrays are (H, W) or (H, W, 3).

    `solid` is an index into the solids, or -1..-6 for the room's faces (x=0, x=X, y=0, y=Y, floor, ceiling). `local` is
    the point in the solid's own frame (world frame for the room).
    """

    depth: Array
    solid: npt.NDArray[np.int32]
    points: Array
    normals: Array
    local: Array
    local_normals: Array


def rotation_z(angle: float) -> Array:
    """Make the rotation matrix (3, 3) of `angle` radians about z."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def rotation_x(angle: float) -> Array:
    """Make the rotation matrix (3, 3) of `angle` radians about x."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def look(position: Array, turn: tuple[float, float, float], intrinsics: Intrinsics, size: tuple[int, int]) -> Camera:
    """Place a camera.

    Args:
        position: (3,), meters, in the world.
        turn: yaw (0 looks along +y, counterclockwise seen from above), pitch (up) and roll (clockwise), radians.
        intrinsics: of the camera, pixels.
        size: (height, width) of the image, pixels.
    """
    yaw, pitch, roll = turn
    forward = rotation_z(yaw) @ np.array([0.0, np.cos(pitch), np.sin(pitch)])
    right = rotation_z(yaw) @ np.array([1.0, 0.0, 0.0])
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    rotation = np.stack([c * right + s * down, c * down - s * right, forward], axis=1)
    return Camera(position, rotation, intrinsics, *size)


def _inside_room(origin: Array, directions: Array, size: Array) -> tuple[Array, npt.NDArray[np.int32]]:
    """Compute the distance to the room's face that each ray exits through, and the number (-1..-6) of the face."""
    target = np.where(directions > 0, size, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.where(directions != 0, (target - origin) / directions, np.inf)
    axis = reach.argmin(axis=-1)
    distance = np.take_along_axis(reach, axis[..., None], -1)[..., 0]
    outward = np.take_along_axis(directions, axis[..., None], -1)[..., 0] > 0
    return distance, (-1 - 2 * axis - outward).astype(np.int32)


# NumPy reduces a last axis of length three element by element; explicit minima are many times faster.
def _smallest(v: Array) -> Array:
    least: Array = np.minimum(np.minimum(v[..., 0], v[..., 1]), v[..., 2])
    return least


def _largest(v: Array) -> Array:
    most: Array = np.maximum(np.maximum(v[..., 0], v[..., 1]), v[..., 2])
    return most


def dot(a: Array, b: Array) -> Array:
    """Compute inner products over the last axis."""
    product: Array = np.einsum("...i,...i->...", a, b)
    return product


def _slabs(solid: Solid, origin: Array, directions: Array) -> tuple[Array, Array]:
    """Compute a box's entry distances along each local axis (N, 3), and its exit distance (N,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1.0 / directions
        low, high = (-solid.half - origin) * inverse, (solid.half - origin) * inverse
    return np.minimum(low, high), _smallest(np.maximum(low, high))


def _quadric(origin: Array, directions: Array) -> tuple[Array, Array]:
    """Compute entry and exit of the unit circle or sphere in the given axes; NaN for a miss."""
    a, b, c = dot(directions, directions), dot(origin, directions), dot(origin, origin) - 1.0
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(b * b - a * c)
        return (-b - root) / a, (-b + root) / a


def _entry_exit(solid: Solid, origin: Array, directions: Array) -> tuple[Array, Array]:
    """Compute entry and exit distances in the solid's local frame; entry > exit, or NaN, is a miss."""
    if solid.kind == BOX:
        near, leave = _slabs(solid, origin, directions)
        return _largest(near), leave
    if solid.kind == ELLIPSOID:
        return _quadric(origin / solid.half, directions / solid.half)
    enter, leave = _quadric(origin[..., :2] / solid.half[:2], directions[..., :2] / solid.half[:2])
    with np.errstate(divide="ignore", invalid="ignore"):
        low = (-solid.half[2] - origin[..., 2]) / directions[..., 2]
        high = (solid.half[2] - origin[..., 2]) / directions[..., 2]
    return np.maximum(enter, np.minimum(low, high)), np.minimum(leave, np.maximum(low, high))


def intersect(solid: Solid, origin: Array, directions: Array) -> Array:
    """Compute the distance from outside to the solid along each ray.

    Args:
        solid: the solid.
        origin: (3,) or (..., 3), world frame, meters.
        directions: (..., 3), world frame.

    Returns:
        (...), in units of the direction's length; infinity for a miss.
    """
    enter, leave = _entry_exit(solid, (origin - solid.center) @ solid.rotation, directions @ solid.rotation)
    with np.errstate(invalid="ignore"):
        hit = (enter <= leave) & (enter > 1e-6)
    distance: Array = np.where(hit, enter, np.inf)
    return distance


def _local_normals(solid: Solid, local: Array, origin: Array, directions: Array) -> Array:
    normals = np.zeros_like(local)
    if solid.kind == BOX:
        axis = _slabs(solid, origin, directions)[0].argmax(axis=-1)
        entered = np.take_along_axis(directions, axis[:, None], -1)
        np.put_along_axis(normals, axis[:, None], -np.sign(entered), -1)
        return normals
    if solid.kind == CYLINDER:
        cap = np.abs(local[:, 2]) >= solid.half[2] - 1e-7
        normals[:, :2] = local[:, :2] / solid.half[:2] ** 2
        normals[cap] = 0.0
        normals[cap, 2] = np.sign(local[cap, 2])
    else:
        normals = local / solid.half**2
    length: Array = np.linalg.norm(normals, axis=-1, keepdims=True)
    return normals / length


def _window(solid: Solid, camera: Camera) -> tuple[slice, slice] | None:
    """Compute the rows and columns of the image that the solid can cover; None if it is not visible."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    corners = (signs * solid.half) @ solid.rotation.T + solid.center
    seen = (corners - camera.position) @ camera.rotation
    if (seen[:, 2] <= 0.01).all():
        return None
    if (seen[:, 2] <= 0.01).any():
        return slice(0, camera.height), slice(0, camera.width)
    k = camera.intrinsics
    u, v = seen[:, 0] / seen[:, 2] * k.fx + k.cx, seen[:, 1] / seen[:, 2] * k.fy + k.cy
    left, right = max(0, int(np.floor(u.min()))), min(camera.width, int(np.ceil(u.max())) + 1)
    top, bottom = max(0, int(np.floor(v.min()))), min(camera.height, int(np.ceil(v.max())) + 1)
    if left >= right or top >= bottom:
        return None
    return slice(top, bottom), slice(left, right)


def cast(solids: list[Solid], room: Array, camera: Camera) -> tuple[Array, npt.NDArray[np.int32], Array]:
    """Find what each pixel sees.

    Args:
        solids: the solids in the room.
        room: size of the room, (3,), meters.
        camera: the camera.

    Returns:
        Depth (H, W) in meters, index of the seen surface (H, W) as in `Hits.solid`, and the rays (H, W, 3) in the
        world.
    """
    directions = camera.intrinsics.rays(camera.height, camera.width) @ camera.rotation.T
    depth, index = _inside_room(camera.position, directions, room)
    for number, solid in enumerate(solids):
        window = _window(solid, camera)
        if window is None:
            continue
        distance = intersect(solid, camera.position, directions[window])
        nearer = distance < depth[window]
        depth[window][nearer] = distance[nearer]
        index[window][nearer] = number
    return depth, index, directions


def first_hit(
    solids: list[Solid], room: Array, origin: Array, directions: Array
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Find the first surface along each ray from one point inside the room.

    Args:
        solids: the solids in the room.
        room: size of the room, (3,), meters.
        origin: (3,), meters, in the world.
        directions: (..., 3), in the world.

    Returns:
        Distance (...) in units of the direction's length, and whether the surface is a solid's (...).
    """
    limit = _inside_room(origin, directions, room)[0]
    distance = limit
    for solid in solids:
        distance = np.minimum(distance, intersect(solid, origin, directions))
    return distance, distance < limit


def groups(index: npt.NDArray[np.int32]) -> Iterator[tuple[int, tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]]:
    """Yield each number in `index` (H, W) with the rows and columns where it occurs."""
    order = np.argsort(index, axis=None, kind="stable")
    rows, columns = np.unravel_index(order, index.shape)
    numbers, starts = np.unique(index.ravel()[order], return_index=True)
    for number, start, end in zip(numbers, starts, [*starts[1:], len(order)], strict=True):
        yield int(number), (rows[start:end], columns[start:end])


def surfaces(
    solids: list[Solid], camera: Camera, depth: Array, index: npt.NDArray[np.int32], directions: Array
) -> Hits:
    """Compute the points and the exact normals of the surfaces that `cast` found; normals face the camera."""
    points = camera.position + depth[..., None] * directions
    local, normals, local_normals = points.copy(), np.zeros_like(points), np.zeros_like(points)
    for face in range(-6, 0):
        axis, far = divmod(-1 - face, 2)
        normals[index == face] = np.eye(3)[axis] * (-1.0 if far else 1.0)
    local_normals[:] = normals
    for number, pixels in groups(index):
        if number < 0:
            continue
        solid = solids[number]
        origin = (camera.position - solid.center) @ solid.rotation
        towards = directions[pixels] @ solid.rotation
        there = origin + depth[pixels][:, None] * towards
        facing = _local_normals(solid, there, origin, towards)
        local[pixels], local_normals[pixels], normals[pixels] = there, facing, facing @ solid.rotation.T
    return Hits(depth, index, points, normals, local, local_normals)


def shadowed(solids: list[Solid], lights: Array, points: Array) -> npt.NDArray[np.bool_]:
    """Test whether a solid blocks the light at each point.

    Only the points inside the cone of a solid's bounding sphere, seen from the light, are tested.

    Args:
        solids: the solids that cast shadows.
        lights: position of the light for each point, (N, 3), meters.
        points: (N, 3), meters.

    Returns:
        bool (N,).
    """
    blocked = np.zeros(len(points), bool)
    middle = lights.mean(axis=0)
    spread = float(np.linalg.norm(lights - middle, axis=1).max())
    rays = points - middle
    length = np.linalg.norm(rays, axis=1) + 1e-9
    for solid in solids:
        offset = solid.center - middle
        distance = float(np.linalg.norm(offset))
        radius = float(np.linalg.norm(solid.half)) + spread
        if distance <= radius * 1.02:
            candidates = ~blocked
        else:
            cosine = np.sqrt(1.0 - (radius / distance) ** 2) * distance
            candidates = ~blocked & (rays @ offset > cosine * length) & (length > distance - radius)
        chosen = np.flatnonzero(candidates)
        if len(chosen):
            start = lights[chosen]
            reach = intersect(solid, start, points[chosen] - start)
            blocked[chosen[reach < 0.995]] = True
    return blocked
