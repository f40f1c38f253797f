"""Test that the first diverging block of an engine is named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from m2h_deploy.bundle.folder import load_bundle
from m2h_deploy.bundle.self_test import pattern
from m2h_deploy.errors import M2HError
from m2h_deploy.parity import draw_errors, locate, locate_in_bundle
from m2h_deploy.parity.locate import block_of


@pytest.fixture(scope="module")
def image(tiny_bundle) -> np.ndarray:
    return pattern(load_bundle(tiny_bundle).manifest.input)


@pytest.fixture(scope="module")
def good(tiny_onnx, tiny_bundle, image):
    return locate(tiny_onnx, tiny_bundle / "model.onnx", image)


def test_an_optimized_engine_of_the_same_weights_has_no_diverging_block(good):
    assert good.block is None
    assert max(value.error for value in good.values) < 1e-3


def test_optimization_leaves_values_to_compare_in_every_block(good):
    assert good.compared > good.of / 2
    names = [block.name for block in good.blocks]
    for block in ("backbone.blocks.5", "mstr", "msf.depth", "wmca.layers.1", "context.depth", "heads.edges"):
        assert block in names


def test_a_damaged_semantics_head_is_found_in_the_head(tiny_onnx, bad_head):
    found = locate_in_bundle(load_bundle(bad_head), tiny_onnx)
    assert found.block == "heads.semantics"
    assert found.value == "semantics"  # the last layer writes the output itself
    assert "heads.semantics" in found.summary


def test_a_damaged_wmca_layer_is_the_first_diverging_block(tiny_onnx, bad_wmca, image):
    found = locate(tiny_onnx, bad_wmca / "model.onnx", image)
    assert found.block == "wmca.layers.1"
    errors = {block.name: block.error for block in found.blocks}
    assert errors["wmca.layers.0"] < 1e-4 < errors["heads.depth"]
    assert draw_errors(found).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "block"),
    [
        ("/backbone/blocks.3/attn/MatMul_output_0", "backbone.blocks.3"),
        ("/backbone/patch_embed/proj/Conv_output_0", "backbone.embed"),
        ("/msf.edges/blocks.1/Add_output_0", "msf.edges"),
        ("/wmca/layers.0/ffn1/Add_output_0", "wmca.layers.0"),
        ("/context/merge.depth/out/Conv_output_0", "context"),
        ("normals", "heads.normals"),
    ],
)
def test_values_belong_to_the_blocks_of_the_paper(value, block):
    assert block_of(value) == block


def test_a_file_that_is_not_onnx_is_named(tmp_path, tiny_onnx, image):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\x00not a graph")
    with pytest.raises(M2HError, match=r"broken\.onnx"):
        locate(tiny_onnx, broken, image)


def test_a_compiled_engine_is_refused_in_one_line(tiny_bundle, tiny_onnx):
    bundle = load_bundle(tiny_bundle)
    engine = bundle.manifest.engine.model_copy(update={"kind": "tensorrt", "file": "model.plan"})
    compiled = dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"engine": engine}))
    with pytest.raises(M2HError, match="does not show its intermediate values"):
        locate_in_bundle(compiled, tiny_onnx)
