"""Test that each rewrite of the deploy form, and the whole network, equal the original in float64."""

from __future__ import annotations

import copy
import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.deploy_form import backbone as deploy_backbone
from export.deploy_form import fold, ggfm, heads, layers, msf, mstr, to_deploy, upsample_blocks, wmca
from m2h_deploy.errors import M2HError
from m2h_deploy.model import TASKS, load_checkpoint
from m2h_deploy.model.config import WMCA_TASKS
from m2h_deploy.model.heads import UpsampleBlock
from m2h_deploy.model.layers import resize, upsample2
from m2h_deploy.model.wmca import window_partition as reference_partition
from m2h_deploy.numerics import judge, perturbed
from tests.golden import filler
from tests.networks import random_network

GRID = (3, 5)  # patches: odd, so that MSF's first skip is resized
SIZE = (32, 48)  # the heads' maps


@pytest.fixture(scope="module", params=[True, False], ids=["separable", "dense"])
def network(request):
    """Return a small network of either kind in float64: (module tree, channels)."""
    model = random_network(
        "m2h-tiny", separable=request.param, channels=32, backbone=None, head_channels=(16, 8), num_classes=5
    )
    return model.double().requires_grad_(False)


def draw(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-10 * expected.abs().max()


def maps_of(network, *, batch: int = 2) -> dict[str, Tensor]:
    channels, scale = network.config.channels, range(1, 5)
    return {task: s * draw(batch, channels, *SIZE).roll(s, 3) for task, s in zip(WMCA_TASKS, scale, strict=True)}


def test_grouped_1x1_is_a_block_diagonal_matrix():
    conv = nn.Conv2d(8, 12, 1, groups=4).double()
    x = draw(2, 8, 4, 5)
    assert_same(fold.pointwise(fold.dense_matrix(conv), conv.bias)(x), conv(x))


def test_1x1_pair_folds():
    first, second = nn.Conv2d(8, 6, 1).double(), nn.Conv2d(6, 4, 1, groups=2).double()
    x = draw(2, 8, 4, 5)
    assert_same(fold.pointwise(*fold.fold_pointwise_pair(first, second))(x), second(first(x)))


def test_batch_norm_folds_into_every_convolution_of_the_heads(network):
    block = network.heads["depth"].upsample1
    x = draw(2, 32, 6, 7)
    assert_same(fold.fold_batch_norm(block.conv1, block.norm1)(x), block.norm1(block.conv1(x)))


@pytest.mark.parametrize(("length", "target"), [(8, 5), (8, 16), (5, 1), (7, 7)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_resize_is_a_matrix(length, target, align_corners):
    x = draw(1, 2, length, 3)
    matrix = layers.resize_matrix(length, target, align_corners=align_corners)
    assert_same(matrix @ x, resize(x, (target, 3), align_corners=align_corners))
    assert_same(matrix.sum(1), torch.ones(target, dtype=torch.float64))


def test_mean_of_an_upsampled_map_needs_no_upsampling():
    x = draw(2, 6, 5, 8)
    expected = upsample2(x).mean((2, 3), keepdim=True)
    assert_same(layers.UpsampledMean(6, 5, 8)(x), expected)
    assert_same((x * layers.upsampled_mean_weights(5, 8)).sum((2, 3), keepdim=True), expected)
    assert (x.mean((2, 3), keepdim=True) - expected).abs().max() > 1e-3  # the weights are not uniform


def test_3x3_to_one_channel_is_nine_taps_and_a_selector():
    conv = nn.Conv2d(6, 1, 3, padding=1).double()
    x = draw(2, 6, 5, 7)
    matrix, selector = layers.taps(conv)
    assert_same(selector(fold.pointwise(matrix)(x)), conv(x))


@pytest.mark.parametrize(("height", "width"), [(42, 70), (45, 61)])
def test_backbone(network, height, width):
    image = draw(2, 3, height, width)
    deployed = deploy_backbone.DeployDINOv2(network.backbone, height, width)
    stages = network.backbone(image)
    for tokens, (patches, class_token) in zip(deployed(image), stages, strict=True):
        assert deployed.grid == tuple(patches.shape[2:])
        assert_same(tokens[:, 0], class_token)
        assert_same(tokens[:, 1:], patches.flatten(2).transpose(1, 2))


def test_layer_scale_and_attention_scale_fold(network):
    block = network.backbone.blocks[1]
    x = draw(2, 7, 192)
    assert_same(deploy_backbone.DeployBlock(block)(x), block(x))


def test_class_token_readout_is_a_bias(network):
    readout = network.mstr.stages[0].readout
    patches, token = draw(2, 6, 192), draw(2, 1, 192)
    on_patches, on_token = mstr.split_readout(readout)
    expected = readout(torch.cat((patches, token.expand_as(patches)), dim=2))
    assert_same(on_patches(patches) + on_token(token), expected)


def test_mstr_and_msf(network):
    tokens = [draw(2, 1 + math.prod(GRID), 192) * (stage + 1) for stage in range(4)]
    stages = [(t[:, 1:].transpose(1, 2).unflatten(2, GRID), t[:, 0]) for t in tokens]
    maps, expected = mstr.DeployMSTR(network.mstr, GRID)(tokens), network.mstr(stages)
    for actual, reference in zip(maps, expected, strict=True):
        assert_same(actual, reference)
    assert_same(msf.DeployMSF(network.msf["normals"])(maps), network.msf["normals"](expected))


def test_fusion_block_projects_before_it_upsamples(network):
    block = network.msf["depth"].blocks[1]
    x, skip = draw(2, 32, 6, 4), draw(1, 32, 6, 4)
    assert_same(msf.DeployFusionBlock(block)(x, skip), block(x, skip))


def test_partition_and_reverse_are_those_of_the_reference():
    x = draw(2, 4, 9, 15)
    windows = wmca.window_partition(x, 7)
    assert_same(windows, reference_partition(x, 7))
    assert_same(wmca.window_reverse(windows, 7, 9, 15), x)


def test_window_attention_needs_no_key_bias(network):
    attention = network.wmca.layers[0].attention
    nn.init.normal_(attention.qkv.bias, std=2)
    x = draw(3, 10, attention.out.in_features)
    assert_same(wmca.WindowAttention(attention)(x), attention(x))


def test_wmca_keeps_every_task(network):
    """Height and width are not multiples of the window, so the padding between the layers affects the result."""
    maps = maps_of(network)
    local = wmca.LocalPath(network.wmca)
    actual, expected = local(maps), network.wmca(maps)
    for task in TASKS:
        assert_same(local.full(task, actual[task]), expected[task])


def test_wmca_clears_padding_between_layers(network):
    """Without the clearing, the result differs, so the comparison above is meaningful."""
    maps = maps_of(network)
    local = wmca.LocalPath(network.wmca)
    local.exchange.clear_padding = lambda windows, height, width: windows
    difference = local.full("depth", local(maps)["depth"]) - network.wmca(maps)["depth"]
    assert difference.abs().max() > 1e-6


@pytest.mark.parametrize("task", ["depth", "semantics"])
def test_restoration(network, task):
    grid = (3, 5)  # 2 ceil(h / 2) * 8 = 32, 48: SIZE
    maps = maps_of(network)
    tokens = draw(2, 1 + math.prod(grid), 192)
    last = (tokens[:, 1:].transpose(1, 2).unflatten(2, grid), tokens[:, 0])
    local = wmca.LocalPath(network.wmca)
    context = network.context
    expected = context.merge[task](network.wmca(maps)[task], maps[task], context.unique[task](*last))
    deployed = ggfm.deploy_merge(context, task, local, grid)
    assert isinstance(deployed, ggfm.DeployRestoration)
    assert_same(deployed(local(maps)[task], maps[task], tokens), expected)


def test_upsample_block(network):
    block = network.heads["depth"].upsample1
    deployed, pending = upsample_blocks.first_block(block, (6, 7))
    assert pending != isinstance(block, UpsampleBlock)
    x = draw(2, 32, 6, 7)
    assert_same(upsample2(deployed(x)) if pending else deployed(x), block(x))


def test_second_upsample_block(network):
    block = network.heads["semantics"].upsample2
    deployed, pending = upsample_blocks.second_block(block, (3, 4))
    assert pending != isinstance(block, UpsampleBlock)
    w = draw(2, 16, 3, 4)
    assert_same(upsample2(deployed(w)) if pending else deployed(w), block(upsample2(w) if pending else w))


def test_depth_refinement_is_read_as_eighteen_taps(network):
    head = network.heads["depth"]
    if isinstance(head.upsample2, UpsampleBlock):
        pytest.skip("only the separable refinement is read before the upsampling")
    y = draw(2, 8, 6, 8)
    end = heads.DepthEnd(head, (24, 32))
    x = head.refine(upsample2(y))
    expected = F.relu(head.final(x * torch.sigmoid(head.spatial(x)))) + head.min_depth
    assert_same(end(heads.SeparableDepthRefinement(head)(y)), resize(expected, (24, 32)))


def test_last_upsample_block_absorbs_the_head(network):
    head = network.heads["normals"]
    dense = isinstance(head.upsample2, UpsampleBlock)
    deployed = upsample_blocks.last_block(head.upsample2, head.final, (3, 4))
    w = draw(2, 16, 6, 8) if dense else draw(2, 16, 3, 4)
    if dense:
        assert_same(deployed(w), head.final(head.upsample2(w)))
    else:
        assert_same(upsample2(deployed(w)), head.final(head.upsample2(upsample2(w))))


def test_aspp_pools_into_a_bias(network):
    x = draw(2, 32, 20, 21)
    aspp = network.heads["semantics"].aspp
    assert_same(heads.DeployASPP(aspp)(x), aspp(x))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("target", [(21, 30), (32, 48)])
def test_heads(network, task, target):
    head = network.heads[task]
    x = draw(2, 32, 8, 12)
    assert_same(heads.deploy_head(head, (8, 12), target)(x), resize(head(x), target))


@pytest.mark.parametrize(
    "options",
    [{}, {"context": "ggfm"}, {"cross_task": "mha"}, {"cross_task": "none"}, {"separable": False, "context": "ggfm"}],
)
@pytest.mark.parametrize(("height", "width", "batch"), [(56, 42, 2), (45, 61, 1)])
def test_network_with_every_option(options, height, width, batch):
    model = random_network("m2h-tiny", head_channels=(16, 8), **options).double()
    image = draw(batch, 3, height, width)
    with torch.inference_mode():
        expected, actual = model(image), to_deploy(model, height, width)(image)
    assert list(actual) == list(TASKS)
    for task in TASKS:
        assert_same(actual[task], expected[task])


def test_the_model_is_not_modified(tiny_model):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    deployed = to_deploy(tiny_model, 28, 42)
    for tensor in deployed.parameters():
        assert tensor.dtype == torch.float32
        tensor.zero_()
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_impossible_sizes_are_refused(tiny_model):
    with pytest.raises(M2HError, match="must be at least 1"):
        to_deploy(tiny_model, height=0, width=14)


def published(network: str, folder):
    path = folder / f"{network}.pt"
    torch.save({name: torch.from_numpy(value) for name, value in filler.weights(network).items()}, path)
    return load_checkpoint(path)


CASES = [
    ("m2h-tiny", 112, 98, 2),
    pytest.param("m2h-tiny", 224, 224, 2, marks=pytest.mark.slow),
    pytest.param("m2h-tiny", 480, 640, 1, marks=pytest.mark.slow),
    pytest.param("m2h-tiny", 230, 181, 2, marks=pytest.mark.slow),
    pytest.param("m2h_small", 224, 224, 1, marks=pytest.mark.slow),
    pytest.param("m2h_small", 480, 640, 1, marks=pytest.mark.slow),
    pytest.param("m2h_small", 125, 181, 2, marks=pytest.mark.slow),
    pytest.param("m2h", 112, 126, 2, marks=pytest.mark.slow),
    pytest.param("m2h", 224, 224, 1, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("variant", "height", "width", "batch"), CASES)
def test_float32_error_is_as_small_as_the_references(variant, height, width, batch, tmp_path):
    """The deploy form in float32 is as close to the float64 reference as the reference in float32 is."""
    model = random_network(variant) if variant == "m2h-tiny" else published(variant, tmp_path)
    image = filler.image(batch, height, width)
    with torch.inference_mode():
        deployed = to_deploy(model, height, width)(torch.from_numpy(image))
        exact = copy.deepcopy(model).double()(torch.from_numpy(image).double())

        @cache
        def own(index: int) -> dict[str, Tensor]:
            return model(torch.from_numpy(perturbed(image, index)))

        for task in TASKS:
            difference = judge(
                deployed[task].numpy(), exact[task].numpy(), lambda index, task=task: own(index)[task].numpy()
            )
            assert difference.passed, (task, difference)
