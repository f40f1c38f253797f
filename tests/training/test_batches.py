"""Test that labels match the image after resizing and augmentation."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from m2h_deploy.data.rooms.render import Rooms, render_room
from m2h_deploy.errors import M2HError
from m2h_deploy.training.batches import AugmentConfig, Batch, augment, epoch_order, flip, read_batch, resize_labels
from m2h_deploy.training.cache import UNKNOWN_EDGE, FrameCache, open_cache

OFF = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0, gamma=0, flip=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> FrameCache:
    return open_cache(Rooms(3, 4, 40, 48), "rooms 4", tmp_path_factory.mktemp("cache"), (40, 48))


def test_a_batch_holds_the_frames_in_the_networks_conventions(cache: FrameCache) -> None:
    batch = read_batch(cache, np.array([2, 0]), (40, 48))
    for row, number in enumerate((2, 0)):
        frame = render_room(4, number, 40, 48)
        torch.testing.assert_close(
            batch.image[row], torch.from_numpy(frame.image[..., ::-1].copy()).permute(2, 0, 1) / 255
        )
        # 1 to 40 in the network are 0 to 39 in the data.
        assert (batch.semantics[row].numpy() == frame.semantics.astype(int) + 1).all()
        np.testing.assert_allclose(batch.depth[row, 0], frame.depth, rtol=1e-3)
        np.testing.assert_allclose(batch.normals[row].permute(1, 2, 0), frame.normals, atol=1e-3)
        assert (batch.edges[row, 0].numpy() == frame.edges).all()


def test_unknown_labels_stay_unknown() -> None:
    cache = FrameCache(
        image=np.zeros((1, 4, 4, 3), np.uint8),
        depth=np.zeros((1, 4, 4), np.float16),
        semantics=np.full((1, 4, 4), 255, np.uint8),
        normals=np.zeros((1, 4, 4, 3), np.float16),
        edges=np.full((1, 4, 4), UNKNOWN_EDGE, np.uint8),
        class_names=(),
    )
    batch = resize_labels(read_batch(cache, np.array([0]), (4, 4)), (2, 2))
    assert (batch.semantics == -1).all() and (batch.edges == -1).all()
    assert not batch.depth.any() and not batch.normals.any()


def test_flipping_mirrors_maps_and_the_x_of_normals(cache: FrameCache) -> None:
    batch = read_batch(cache, np.array([0, 1]), (40, 48))
    flipped = flip(batch, torch.tensor([True, False]))
    for name in ("image", "depth", "semantics", "edges"):
        assert torch.equal(getattr(flipped, name)[0], getattr(batch, name)[0].flip(-1))
        assert torch.equal(getattr(flipped, name)[1], getattr(batch, name)[1])
    sign = torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    assert torch.equal(flipped.normals[0], sign * batch.normals[0].flip(-1))
    assert torch.equal(flipped.normals[1], batch.normals[1])


def test_flipped_normals_are_those_of_the_flipped_depth(cache: FrameCache) -> None:
    from m2h_deploy.training.losses import Camera, normals_of_depth

    batch = flip(read_batch(cache, np.array([0]), (40, 48)), torch.tensor([True]))
    focal = 518.85790117450188 / 640 * 48
    camera = Camera((focal, focal), ((48 - 1) / 2, (40 - 1) / 2))
    cosine = (normals_of_depth(batch.depth, camera) * batch.normals[..., :-1, :-1]).sum(dim=1)
    # Most pixels lie on planes away from steps in depth; half-float depth leaves some noise.
    assert cosine.median() > 0.95


def test_augmentation_is_reproducible_by_its_seed_and_keeps_labels(cache: FrameCache) -> None:
    batch = read_batch(cache, np.arange(3), (40, 48))
    config = AugmentConfig(flip=0)
    first, again, other = (augment(batch, config, seed) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image) and not torch.equal(first.image, other.image)
    assert torch.equal(first.depth, batch.depth) and torch.equal(first.semantics, batch.semantics)
    assert first.image.min() >= 0 and first.image.max() <= 1


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "gamma"])
def test_each_augmentation_has_an_effect_and_can_be_switched_off(cache: FrameCache, name: str) -> None:
    batch = read_batch(cache, np.arange(3), (40, 48))
    assert torch.equal(augment(batch, OFF, 3).image, batch.image)
    changed = augment(batch, AugmentConfig(**{**vars(OFF), name: 0.3}), 3)
    assert (changed.image - batch.image).abs().mean() > 1e-3


def test_edges_survive_a_smaller_size() -> None:
    edges = torch.zeros(1, 1, 8, 8)
    edges[..., 3] = 1
    batch = Batch(torch.zeros(1, 3, 8, 8), edges, torch.zeros(1, 8, 8).long(), torch.zeros(1, 3, 8, 8), edges)
    small = resize_labels(batch, (2, 2)).edges
    assert small[0, 0].tolist() == [[1, 0], [1, 0]]


def test_an_epoch_shows_every_frame_once_and_differs_from_the_next() -> None:
    first = np.concatenate(list(epoch_order(12, 4, [7], 0)))
    assert sorted(first) == list(range(12))
    assert first.tolist() != np.concatenate(list(epoch_order(12, 4, [7], 1))).tolist()
    assert first.tolist() == np.concatenate(list(epoch_order(12, 4, [7], 0))).tolist()


def test_a_cache_is_built_once_and_atomically(tmp_path: object) -> None:
    class Breaks(Rooms):
        def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
            if index == 2:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        open_cache(Breaks(3, 1, 16, 16), "breaks", tmp_path, (16, 16))
    assert list(tmp_path.iterdir()) == []
    built = open_cache(Rooms(3, 1, 16, 16), "rooms", tmp_path, (16, 16), count=2)
    again = open_cache(Rooms(3, 1, 16, 16), "rooms", tmp_path, (16, 16), count=2)
    assert len(built) == 2 and len(list(tmp_path.iterdir())) == 1
    assert (built.image == again.image).all()


def test_a_cache_that_the_machine_cannot_read_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_cache(Rooms(2, 1, 16, 16), "rooms", tmp_path, (16, 16))
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("m2h_deploy.training.cache.np.load", refuse)
        with pytest.raises(M2HError, match="Too many open files"):
            open_cache(Rooms(2, 1, 16, 16), "rooms", tmp_path, (16, 16))
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_a_truncated_cache_is_built_again(tmp_path: Path, share: float) -> None:
    built = open_cache(Rooms(2, 1, 16, 16), "rooms", tmp_path, (16, 16))
    expected = built.depth.copy()
    (file,) = tmp_path.glob("frames-*/depth.npy")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    assert np.array_equal(open_cache(Rooms(2, 1, 16, 16), "rooms", tmp_path, (16, 16)).depth, expected)
