"""Load and save checkpoints: published `.pt` state dicts and safetensors, read strictly and without running code."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from m2h_deploy.errors import M2HError
from m2h_deploy.files.atomic import whole_file
from m2h_deploy.model.config import BACKBONES, VARIANTS, WMCA_TASKS, BackboneConfig, ModelConfig
from m2h_deploy.model.network import M2H
from m2h_deploy.model.weights import read_tensors

#: Folder of the weights that ship with the package. Their names are accepted in place of a checkpoint's path.
ASSETS = Path(__file__).parent.parent / "assets"

_CONFIG_KEY = "m2h_config"

# Published tensor names (UAV-Centre-ITC/M2H, models/full.py and lightweight.py) to ours; the first match applies. The
# backbone keeps DINOv2's own names.
_RENAMES = [
    (r"mlt_head\.reassemble_blocks\.readout_projects\.(\d)\.0\.", r"mstr.stages.\1.readout."),
    (r"mlt_head\.reassemble_blocks\.projects\.(\d)\.conv\.", r"mstr.stages.\1.project."),
    (r"mlt_head\.reassemble_blocks\.resize_layers\.(\d)\.", r"mstr.stages.\1.resize."),
    (r"mlt_head\.convs\.(\d)\.conv\.", r"mstr.refine.\1."),
    (r"mlt_head\.fusion_blocks_(\w+?)\.(\d)\.", r"msf.\1.blocks.\2."),
    (r"mlt_head\.project_(\w+?)\.conv\.", r"msf.\1.project."),
    (r"mlt_head\.pre_attn_proj\.", r"wmca.reduce."),
    (r"mlt_head\.post_attn_proj\.", r"wmca.expand."),
    (r"mlt_head\.cross_attn\.(\d+)\.attn\.in_proj_", r"wmca.layers.\1.attention.qkv."),
    (r"mlt_head\.cross_attn\.(\d+)\.attn\.out_proj\.", r"wmca.layers.\1.attention.out."),
    (r"mlt_head\.cross_attn\.(\d+)\.ffn_fc", r"wmca.layers.\1.ffn"),
    (r"mlt_head\.cross_attn\.(\d+)\.norm_layers\.", r"wmca.layers.\1.norm1."),
    (r"mlt_head\.cross_attn\.(\d+)\.norm2_layers\.", r"wmca.layers.\1.norm2."),
    (r"mlt_head\.unique_(\w+?)_feature\.", r"context.unique.\1."),
    (r"mlt_head\.restore_(\w+?)\.", r"context.merge.\1."),
    (r"mlt_head\.conv_depth\.", r"heads.depth."),
    (r"mlt_head\.seg_out\.", r"heads.semantics."),
    (r"mlt_head\.conv_normal\.head\.", r"heads.normals."),
    (r"mlt_head\.conv_edge\.head\.", r"heads.edges."),
]

# Renames inside the blocks, applied in order to every tensor of the decoder that was renamed above.
_INNER_RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"(wmca\.layers\.\d+\.norm[12])\.(\d)\.", lambda m: f"{m[1]}.{WMCA_TASKS[int(m[2])]}."),
    (
        r"^(msf|context\.unique|wmca\.(?:reduce|expand)|context\.merge)\.(sem_seg|semantic|semseg)\.",
        r"\1.semantics.",
    ),
    (r"^(context\.unique\.\w+)\.reassemble\.projects\.conv\.", r"\1.reassemble.project."),
    (r"^(context\.unique\.\w+)\.reassemble\.resize_layers\.", r"\1.reassemble.resize."),
    (r"^(context\.unique\.\w+)\.conv_proj\.conv\.", r"\1.refine."),
    (r"^(context\.unique\.\w+)\.fusion_block\.", r"\1.fuse."),
    (r"\.project\.conv\.", ".project."),
    (r"\.res_conv_unit1\.(conv[12])\.conv\.", r".skip_residual.\1."),
    (r"\.res_conv_unit2\.(conv[12])\.conv\.", r".residual.\1."),
    (r"\.res_unit\.block\.1\.", ".residual.conv."),
    (r"^(context\.merge\.\w+)\.conv_orig\.", r"\1.original."),
    (r"^(context\.merge\.\w+)\.conv_attn\.", r"\1.attended."),
    (r"^(context\.merge\.\w+)\.conv_uniq\.", r"\1.unique."),
    (r"^(context\.merge\.\w+)\.gate_fc\.", r"\1.gate."),
    (r"^(context\.merge\.\w+)\.ffn\.0\.", r"\1.ffn1."),
    (r"^(context\.merge\.\w+)\.ffn\.2\.", r"\1.ffn2."),
    (r"^(context\.merge\.\w+)\.out_conv\.", r"\1.out."),
    (r"\.aspp\.aspp([1-4])\.0\.", lambda m: f".aspp.branches.{int(m[1]) - 1}.conv."),
    (r"\.aspp\.aspp([1-4])\.1\.", lambda m: f".aspp.branches.{int(m[1]) - 1}.norm."),
    (r"\.aspp\.global_avg_pool\.1\.", ".aspp.pooled.conv."),
    (r"\.aspp\.global_avg_pool\.2\.", ".aspp.pooled.norm."),
    (r"\.aspp\.(conv1|project\.0)\.", ".aspp.project."),
    (r"\.aspp\.(bn1|project\.1)\.", ".aspp.norm."),
    (r"^(heads\.(?:normals|edges))\.0\.", r"\1.upsample1."),
    (r"^(heads\.(?:normals|edges))\.1\.", r"\1.upsample2."),
    (r"^(heads\.(?:normals|edges))\.2\.", r"\1.final."),
    (r"(upsample[12])\.upsample\.0\.", r"\1.conv1."),
    (r"(upsample[12])\.upsample\.1\.", r"\1.norm1."),
    (r"(upsample[12])\.upsample\.3\.", r"\1.conv2."),
    (r"(upsample[12])\.upsample\.4\.", r"\1.norm2."),
    (r"(upsample[12])\.upsample\.6\.", r"\1.up."),
    (r"(upsample[12])\.bn([12])\.", r"\1.norm\2."),
    (r"(upsample[12])\.refine_conv\.", r"\1.refine."),
    (r"(upsample[12])\.channel_attn\.1\.", r"\1.gate.squeeze."),
    (r"(upsample[12])\.channel_attn\.3\.", r"\1.gate.excite."),
    (r"^(heads\.\w+)\.final_conv\.", r"\1.final."),
    (r"^(heads\.\w+)\.spatial_attn\.0\.", r"\1.spatial."),
    (r"^(heads\.\w+\.refine)\.conv([12])\.conv\.", r"\1.conv\2."),
    (r"^(heads\.\w+\.refine)\.conv\.0\.", r"\1.conv."),
]


def rename_published(name: str) -> str:
    """Translate a tensor name of the published network into ours.

    A `module.` prefix (torch.nn.DataParallel) is removed. Names that match no rule are otherwise returned unchanged.
    """
    name = name.removeprefix("module.")  # torch.nn.DataParallel
    for pattern, replacement in _RENAMES:
        renamed, count = re.subn("^" + pattern, replacement, name)
        if count:
            for inner, inner_replacement in _INNER_RENAMES:
                renamed = re.sub(inner, inner_replacement, renamed)
            return renamed
    return name


def load_checkpoint(path: str | os.PathLike[str]) -> M2H:
    """Load a network in eval mode, float32, on the CPU.

    The variant, backbone, channels and classes are read from the file's metadata or inferred from its tensors.

    Args:
        path: a published state dict (`.pt`, read with `weights_only=True`), a safetensors file of `save_checkpoint`, or
            the name of weights that ship with the package (`m2h-tiny`).

    Raises:
        M2HError: the file is missing or damaged, would run code, has tensors that are not weights (see `read_tensors`),
            or does not match an M2H network exactly; the message names missing, unexpected and misshapen tensors.
    """
    file = resolve_checkpoint(path)
    if file.suffix.lower() == ".onnx":
        raise M2HError(f"{file} is an ONNX file: give the checkpoint (.pt or .safetensors) that it was exported from")
    tensors, metadata = read_tensors(file)
    tensors = {rename_published(name): tensor for name, tensor in tensors.items()}
    model = M2H(_stated_config(metadata, file) or _infer_config(tensors, file))
    _check_tensors(model.state_dict(), tensors, file)
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    check_finite(tensors, file)
    model.load_state_dict(tensors)
    return model.eval()


def _stated_config(metadata: Mapping[str, str], file: Path) -> ModelConfig | None:
    """Read the configuration from the metadata that `save_checkpoint` writes; None if the file has no such metadata."""
    if _CONFIG_KEY not in metadata:
        return None
    try:
        return ModelConfig.from_dict(json.loads(metadata[_CONFIG_KEY]))
    except (ValueError, RecursionError, M2HError) as error:
        raise M2HError(f"{file}: its metadata {_CONFIG_KEY} is damaged: {error}") from None


def check_finite(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Raise M2HError if a floating-point tensor contains NaN or infinity.

    Args:
        tensors: tensors by name, already converted to float32.
        file: where they come from, for the message.
    """
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        more = f" and {len(bad) - 1} others" if len(bad) > 1 else ""
        raise M2HError(f"{file}: {bad[0]}{more} holds NaN or infinity: the training that wrote it had diverged")


def save_checkpoint(model: M2H, path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a network as safetensors with its configuration in the metadata.

    Batch norm statistics stay float32, because some variances exceed the range of float16. The write is atomic.

    Args:
        model: the network.
        path: the file to write.
        dtype: type of the weights in the file.

    Returns:
        `path`.
    """
    from safetensors.torch import save_file

    path = Path(path)
    weights = {name for name, _ in model.named_parameters()}
    tensors = {
        name: tensor.detach().to(dtype if name in weights else tensor.dtype).contiguous().cpu()
        for name, tensor in model.state_dict().items()
    }
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={_CONFIG_KEY: json.dumps(model.config.to_dict())})
    return path


def weights_digest(model: M2H) -> str:
    """Compute the SHA-256 of the names, shapes and float32 values of the weights, as hexadecimal digits.

    The digest does not depend on the format of the file that the weights were read from.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def resolve_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Find the file for a path or for the name of weights that ship with the package.

    Raises:
        M2HError: neither exists.
    """
    file = Path(path)
    if file.is_file():
        return file
    shipped = ASSETS / f"{path}.safetensors"
    if str(path) in VARIANTS and shipped.is_file():
        return shipped
    if file.is_dir():
        raise M2HError(f"{file} is a folder: give the checkpoint file in it")
    raise M2HError(
        f"no checkpoint at {file}: give a published .pt file, an m2h-deploy .safetensors file, or m2h-tiny (built in)"
    )


def _infer_config(tensors: dict[str, Tensor], file: Path) -> ModelConfig:
    """Infer the configuration from the names and shapes of published tensors."""
    anchors = (
        "backbone.pos_embed",
        "backbone.patch_embed.proj.weight",
        "mstr.refine.0.weight",
        "mstr.refine.0.pointwise.weight",
        "heads.semantics.final.weight",
        "heads.depth.upsample1.residual.weight",
        "heads.depth.upsample2.residual.weight",
    )
    found = {name: tuple(tensors[name].shape) for name in anchors if name in tensors}
    refine = found.get("mstr.refine.0.weight") or found.get("mstr.refine.0.pointwise.weight")
    complete = len(found) == len(anchors) - 1 and refine is not None
    if not complete or len(found["backbone.pos_embed"]) != 3 or len(found["backbone.patch_embed.proj.weight"]) != 4:
        absent = [name for name in anchors[:2] + anchors[4:] if name not in found] or ["mstr.refine.0.weight"]
        raise M2HError(
            f"{file} is not an M2H checkpoint: it lacks {_few(absent)} and begins with {_few(list(tensors))}"
        )
    separable = "mstr.refine.0.pointwise.weight" in found
    preset = VARIANTS["m2h-small" if separable else "m2h"]
    return ModelConfig(
        variant=preset.variant,
        backbone=_infer_backbone(tensors),
        channels=refine[0],  # type: ignore[index]
        separable=separable,
        head_channels=(
            found["heads.depth.upsample1.residual.weight"][0],
            found["heads.depth.upsample2.residual.weight"][0],
        ),
        cross_layers=len({n.split(".")[2] for n in tensors if n.startswith("wmca.layers.")}) or 2,
        cross_task="wmca" if any(n.startswith("wmca.layers.") for n in tensors) else "none",
        context="ggfm" if "context.merge.edges.merge.weight" in tensors else "restoration",
        num_classes=found["heads.semantics.final.weight"][0],
    )


def _infer_backbone(tensors: dict[str, Tensor]) -> BackboneConfig:
    _, positions, dim = tensors["backbone.pos_embed"].shape
    patch = tensors["backbone.patch_embed.proj.weight"].shape[-1]
    depth = len({n.split(".")[2] for n in tensors if n.startswith("backbone.blocks.")})
    for known in BACKBONES.values():
        if (known.embed_dim, known.depth) == (dim, depth):
            grid = round((positions - 1) ** 0.5)
            return BackboneConfig(known.name, dim, depth, known.heads, known.stages, patch, grid)
    raise M2HError(
        f"unknown backbone: width {dim}, {depth} blocks; known are "
        + ", ".join(f"{b.name} ({b.embed_dim}, {b.depth})" for b in BACKBONES.values())
    )


def _check_tensors(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], file: Path) -> None:
    """Raise M2HError if tensors are missing, unexpected or misshapen; the message names them."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    misshapen = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    problems = [
        f"{label} {_few(names)}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise M2HError(f"{file} does not fit M2H: {'; '.join(problems)}")


def _few(names: list[str]) -> str:
    shown = ", ".join(names[:3]) or "nothing"
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
