"""Test the manifest, its checks against damage and abuse, and writing a bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from m2h_deploy import CheckFailed, M2HError, Runtime
from m2h_deploy.bundle.folder import load_bundle, new_bundle_folder, record_result
from m2h_deploy.bundle.manifest import json_schema
from m2h_deploy.files.digests import file_sha256
from tests.commands import refused

SCHEMA = Path(__file__).parents[2] / "m2h_deploy" / "bundle" / "manifest.schema.json"


@pytest.fixture
def bundle(tiny_bundle, tmp_path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit(bundle: Path, change) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_the_manifest_follows_the_schema_in_the_repository(bundle):
    schema = json.loads(SCHEMA.read_text())
    assert schema == json.loads(json.dumps(json_schema())), "write it again: python -m m2h_deploy.bundle.manifest"
    jsonschema.validate(json.loads((bundle / "manifest.json").read_text()), schema)


def test_the_manifest_alone_describes_how_to_use_the_engine(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    spec = manifest["input"]
    assert (spec["name"], spec["height"], spec["width"], spec["color"]) == ("image", 112, 140, "RGB")
    assert spec["mean"] == [0.4803, 0.48, 0.4723]
    outputs = {output["name"]: (output["unit"], output["shape"]) for output in manifest["outputs"]}
    assert outputs["depth"] == ("m", [1, 1, 112, 140])
    assert manifest["classes"]["names"][:3] == ["unknown", "wall", "floor"]
    assert len(manifest["classes"]["names"]) == len(manifest["classes"]["palette"]) == 41
    assert set(manifest["files"]) == {"model.onnx"}
    assert {path.name for path in bundle.iterdir()} == {"manifest.json", "model.onnx"}


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path):
    assert "is not a bundle" in refused(Runtime.load, tmp_path)
    assert "is not a bundle" in refused(Runtime.load, tmp_path / "nothing")


def test_a_missing_file_is_named(bundle):
    (bundle / "model.onnx").unlink()
    assert "model.onnx is missing" in refused(Runtime.load, bundle)


def test_a_changed_file_is_named(bundle):
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    assert "model.onnx does not have the manifest's sha256" in refused(Runtime.load, bundle)


def test_a_newer_schema_asks_for_an_upgrade(bundle):
    edit(bundle, lambda manifest: manifest.update(schema_version=2))
    assert "schema version 2" in refused(Runtime.load, bundle)
    assert "upgrade" in refused(Runtime.load, bundle)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b.onnx", "..", ".hidden", "a\\b", ""])
def test_a_path_that_leaves_the_folder_is_refused(bundle, name):
    def change(manifest):
        manifest["files"][name] = manifest["files"].pop("model.onnx")
        manifest["engine"]["file"] = name

    edit(bundle, change)
    assert "manifest.json" in refused(Runtime.load, bundle)


def test_a_link_that_leaves_the_folder_is_refused(bundle):
    (bundle / "model.onnx").rename(bundle.parent / "outside.onnx")
    (bundle / "model.onnx").symlink_to(bundle.parent / "outside.onnx")
    assert "leads out of the bundle" in refused(Runtime.load, bundle)


def test_an_engine_file_without_a_checksum_is_refused(bundle):
    edit(bundle, lambda manifest: manifest["engine"].update(file="other.onnx"))
    assert "other.onnx is not among" in refused(Runtime.load, bundle)


@pytest.mark.parametrize("content", ["", "no json", "[1, 2]", "{}", '{"schema_version": "one"}', "[" * 100_000])
def test_an_invalid_manifest_is_refused(bundle, content):
    (bundle / "manifest.json").write_text(content)
    assert "manifest.json" in refused(Runtime.load, bundle)


@pytest.mark.parametrize(
    ("field", "value"),
    [(("input", "height"), -1), (("input", "std"), [0, 1, 1]), (("input", "color"), "YUV"), (("surprise",), 1)],
)
def test_invalid_fields_are_named(bundle, field, value):
    def change(manifest):
        for key in field[:-1]:
            manifest = manifest[key]
        manifest[field[-1]] = value

    edit(bundle, change)
    assert ".".join(field) in refused(Runtime.load, bundle)


def test_an_unknown_engine_kind_lists_the_known_ones(bundle):
    edit(bundle, lambda manifest: manifest["engine"].update(kind="abacus"))
    assert "onnxruntime" in refused(Runtime.load, bundle)


def test_a_file_that_is_not_an_engine_is_refused(bundle):
    (bundle / "model.onnx").write_bytes(b"not an engine")
    digest = file_sha256(bundle / "model.onnx")
    edit(bundle, lambda manifest: manifest["files"].update({"model.onnx": digest}))
    assert "cannot load" in refused(Runtime.load, bundle)


def test_the_self_test_catches_wrong_numbers_and_can_be_turned_off(bundle):
    def change(manifest):
        values = manifest["self_test"]["outputs"]["normals"]["values"]
        manifest["self_test"]["outputs"]["normals"]["values"] = [-value for value in values]

    edit(bundle, change)
    with pytest.raises(CheckFailed, match="normals"):
        Runtime.load(bundle)
    with Runtime.load(bundle, self_test=False) as runtime:
        assert runtime(np.zeros((32, 32, 3), np.uint8)).depth is not None


@pytest.mark.parametrize(
    ("path", "value", "was"),
    [
        ("input.mean", [0.5, 0.5, 0.5], "was [0.4803, 0.48, 0.4723]"),
        ("input.std", [0.2594, 0.2573, 0.2], "was [0.2594, 0.2573, 0.2641]"),
        ("input.scale", 1.0, "was 0.0039"),
        ("engine.precision", "fp16", "was 'fp32'"),
    ],
)
def test_an_edited_field_is_named_with_its_former_value(bundle, path, value, was):
    """Also if the outputs stay correct: the cause is the edit, not this machine."""

    def change(manifest):
        *parents, last = path.split(".")
        for parent in parents:
            manifest = manifest[parent]
        manifest[last] = value

    edit(bundle, change)
    with pytest.raises(CheckFailed) as error:
        Runtime.load(bundle)
    said = str(error.value)
    assert f"manifest.json was edited: {path} is" in said
    assert was in said
    assert "this machine" not in said
    assert "\n" not in said
    Runtime.load(bundle, self_test=False).close()


def test_an_edit_that_prevents_loading_is_named_in_the_error(bundle):
    edit(bundle, lambda manifest: manifest["engine"].update(kind="tensorrt"))
    assert "engine.kind is 'tensorrt' and was 'onnxruntime' when the bundle was built" in refused(Runtime.load, bundle)
    edit(bundle, lambda manifest: manifest["input"].update(height=113))
    assert "input.height is 113 and was 112 when the bundle was built" in refused(Runtime.load, bundle)


def test_fields_that_do_not_affect_the_outputs_may_be_edited(bundle):
    def change(manifest):
        manifest["classes"]["names"][1] = "Wand"
        manifest["classes"]["palette"][1] = [1, 2, 3]
        manifest["depth_range"] = [0.1, 5.0]
        manifest["engine"]["options"]["threads"] = 1

    edit(bundle, change)
    with Runtime.load(bundle) as runtime:
        assert runtime.manifest.classes.names[1] == "Wand"
        assert runtime(np.zeros((32, 32, 3), np.uint8)).depth.max() <= 5.0


def test_results_are_recorded_in_the_manifest(bundle):
    recorded = record_result(load_bundle(bundle), parity={"passed": True})
    assert recorded.manifest.parity == {"passed": True}
    assert load_bundle(bundle).manifest.parity == {"passed": True}


def test_a_failed_build_leaves_nothing_and_keeps_the_old_bundle(bundle):
    before = sorted(bundle.parent.iterdir())
    manifest = (bundle / "manifest.json").read_bytes()

    def build() -> None:
        with new_bundle_folder(bundle) as folder:
            (folder / "half").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build()
    assert sorted(bundle.parent.iterdir()) == before
    assert (bundle / "manifest.json").read_bytes() == manifest


def test_a_folder_that_is_not_a_bundle_is_never_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("precious")
    with pytest.raises(M2HError, match="not a bundle"), new_bundle_folder(tmp_path / "photos"):
        pass
    assert (tmp_path / "photos" / "mine.jpg").read_text() == "precious"


def test_a_bundle_folder_with_other_files_is_not_replaced(bundle):
    (bundle / "notes.txt").write_text("precious")
    assert "notes.txt is not named in the manifest" in refused(Runtime.load, bundle)
    with pytest.raises(M2HError, match=r"notes\.txt"), new_bundle_folder(bundle):
        pass
    assert (bundle / "notes.txt").read_text() == "precious"


def test_another_programs_manifest_is_not_taken_for_a_bundle(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "my page"}')
    with pytest.raises(M2HError, match=r"manifest\.json"), new_bundle_folder(tmp_path / "web"):
        pass
    assert (tmp_path / "web" / "manifest.json").exists()


def test_the_old_bundle_is_restored_if_it_cannot_be_replaced(bundle, monkeypatch):
    replace = Path.replace

    def interrupted(self, target):
        if not self.name.startswith(".bundle.old.") and Path(target) == bundle:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), new_bundle_folder(bundle) as folder:
        (folder / "half").write_text("half")
    assert (bundle / "model.onnx").is_file()
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_bundle_cannot_set_options_that_load_libraries(bundle):
    edit(
        bundle, lambda manifest: manifest["engine"]["options"].update(provider_options={"extra_plugin_lib_paths": "x"})
    )
    assert "extra_plugin_lib_paths" in refused(Runtime.load, bundle)


def test_an_invalid_number_of_threads_is_refused(bundle):
    for threads in (0, 100_000):
        with pytest.raises(M2HError, match="threads"):
            Runtime.load(bundle, threads=threads)
