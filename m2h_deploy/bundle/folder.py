"""Load, check, write and replace bundles on disk. The format is described in `m2h_deploy.bundle.manifest`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from m2h_deploy.bundle.consistency import inconsistency
from m2h_deploy.bundle.depth_calibration import DepthCalibration
from m2h_deploy.bundle.manifest import SCHEMA_VERSION, Manifest, first_problem
from m2h_deploy.causes import MachineError, failure, reason
from m2h_deploy.errors import BundleError, M2HError, first_line
from m2h_deploy.files.atomic import check_whole_folder, is_temporary, whole_folder, write_text
from m2h_deploy.files.digests import file_sha256

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk with a valid manifest and verified files."""

    path: Path
    manifest: Manifest

    @property
    def engine_file(self) -> Path:
        """Path of the engine file."""
        return self.path / self.manifest.engine.file


def load_bundle(path: str | os.PathLike[str], *, meanwhile: Callable[[Manifest], object] | None = None) -> Bundle:
    """Load the bundle at `path` and verify schema version, manifest, file names and sha256 sums.

    `meanwhile` is called with the manifest while another thread verifies the files, for work that does not read them.

    Raises:
        BundleError: The bundle is damaged or invalid; names the file or field.
        M2HError: The machine cannot read it.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    if meanwhile is None:
        _check_files(path, manifest)
    else:
        with ThreadPoolExecutor(1, "m2h-checksums") as pool:
            checked = pool.submit(_check_files, path, manifest)
            meanwhile(manifest)
            checked.result()
    return Bundle(path, manifest)


def _check_files(path: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        _check_file(path, name, expected)
    unnamed = _unnamed(path, manifest)
    if unnamed:  # an engine could read the file although no checksum covers it
        raise BundleError(f"{path}: {unnamed[0]} is not named in the manifest; a bundle holds nothing else")


def _unnamed(path: Path, manifest: Manifest) -> list[str]:
    """Return files in the folder that are not part of the bundle, except a manifest that another process is writing."""
    names = (entry.name for entry in path.iterdir() if entry.name not in {MANIFEST, *manifest.files})
    return sorted(name for name in names if not is_temporary(name, MANIFEST))


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not path.is_dir() or not file.is_file():
        raise BundleError(f"{path} is not a bundle: no {MANIFEST} in it; make one with m2h-deploy build")
    try:
        if file.stat().st_size > 16_000_000:
            raise BundleError(f"{file} is too large for a manifest")
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        damaged = f"{file} is not readable JSON ({first_line(error)}): build or copy the bundle again"
        raise failure(error, f"cannot read {file}", damaged, kind=BundleError) from None
    if not isinstance(content, dict):
        raise BundleError(f"{file} is not a manifest: expected a JSON object")
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(f"{file} has schema version {version}, newer than {SCHEMA_VERSION}: upgrade m2h-deploy")
    try:
        manifest = Manifest.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise BundleError(f"{file}: {first_problem(error)}") from None
    problem = inconsistency(manifest)
    if problem is not None:
        raise BundleError(f"{file}: {problem}: build the bundle again")
    return manifest


def _check_file(folder: Path, name: str, expected: str) -> None:
    file = folder / name
    if not file.is_file():
        raise BundleError(f"{folder}: {name} is missing; build or copy the bundle again")
    if file.resolve().parent != folder.resolve():
        raise BundleError(f"{folder}: {name} leads out of the bundle's folder")
    try:
        found = file_sha256(file)
    except OSError as error:
        raise MachineError(f"cannot read {file}: {reason(error)}") from None
    if found != expected:
        raise BundleError(f"{folder}: {name} does not have the manifest's sha256 (damaged or replaced): build it again")


def check_outside(bundle_path: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Return `target` as an absolute path. Raises M2HError if it lies in the bundle, which holds only its own files."""
    path = Path(target).resolve()
    if path.is_relative_to(Path(bundle_path).resolve()):
        raise M2HError(f"{target} lies in the bundle {bundle_path}, which holds only its files: choose another place")
    return path


def copy_bundle(bundle: Bundle, target: Path) -> None:
    """Copy the manifest and the files that it names to the new folder `target`."""
    target.mkdir()
    for name in (MANIFEST, *bundle.manifest.files):
        shutil.copyfile(bundle.path / name, target / name)


@contextmanager
def new_bundle_folder(out_dir: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder that becomes `out_dir` when the block succeeds and is removed when it fails.

    An existing bundle at `out_dir` is replaced atomically, and restored if that fails. Any other folder or file is
    rejected, and so is a bundle with files that its manifest does not name: they may be the user's.
    """
    out = check_bundle_place(out_dir)
    with whole_folder(out, replace=True, last=MANIFEST) as temporary:
        yield temporary


def check_bundle_place(out_dir: str | os.PathLike[str], *sources: str | os.PathLike[str]) -> Path:
    """Return `out_dir` as an absolute path, after checking before the work that a bundle can be built there.

    `sources` are files that the build reads: a bundle that contains one of them is not replaced.

    Raises:
        M2HError: No bundle can be built there.
    """
    out = Path(out_dir).resolve()
    _check_replaceable(out)
    for source in sources:
        if Path(source).resolve().is_relative_to(out):
            raise M2HError(f"{source} lies in {out}, which would be replaced: choose another place")
    return check_whole_folder(out, replace=True)


def _check_replaceable(out: Path) -> None:
    held = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else None
    if not out.exists() or held == []:
        return
    if not (out / MANIFEST).is_file():
        holds = f" (it holds {held[0]})" if held else ""
        raise M2HError(f"{out} exists and is not a bundle{holds}: choose another place")
    try:
        others = _unnamed(out, _read_manifest(out))
    except M2HError as error:
        raise M2HError(f"{error}; to build in its place, remove {out} first") from None
    if others:
        raise M2HError(
            f"{out} holds {others[0]}, which its manifest does not name: choose another place or move it out"
        )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically."""
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=2))


def check_recordable(bundle: Bundle, advice: str = "leave out --record, or copy the bundle") -> None:
    """Raise M2HError, with `advice`, where nothing can be written into the bundle."""
    if not os.access(bundle.path, os.W_OK):
        raise M2HError(f"{bundle.path} cannot be written (no permission): {advice}")


def record_result(
    bundle: Bundle,
    *,
    parity: dict[str, Any] | None = None,
    latency: dict[str, Any] | None = None,
    speed: dict[str, Any] | None = None,
) -> Bundle:
    """Record a parity, latency or speed result in the manifest on disk, and return the updated bundle.

    Results recorded in the meantime are kept.

    Raises:
        M2HError: The folder holds another engine by now.
    """
    results = {"parity": parity, "latency": latency, "speed": speed}
    return _update(bundle, {key: value for key, value in results.items() if value is not None})


def record_calibration(bundle: Bundle, calibration: DepthCalibration | None) -> Bundle:
    """Write a depth calibration to the manifest on disk, or remove it, and return the updated bundle.

    Raises:
        M2HError: The folder holds another engine by now.
    """
    return _update(bundle, {"depth_calibration": calibration})


def _update(bundle: Bundle, updates: dict[str, Any]) -> Bundle:
    present = _read_manifest(bundle.path)
    if present.files != bundle.manifest.files:
        raise M2HError(f"{bundle.path} was rebuilt meanwhile: the result is of the earlier engine, and is not recorded")
    manifest = present.model_copy(update=updates)
    write_manifest(bundle.path, manifest)
    return Bundle(bundle.path, manifest)
