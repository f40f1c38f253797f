"""Configuration of M2H networks: variants, backbones and options as frozen dataclasses."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from m2h_deploy.errors import M2HError

#: Order in which WMCA concatenates the tasks' tokens (paper, equation 7).
WMCA_TASKS = ("edges", "normals", "semantics", "depth")


@dataclass(frozen=True)
class BackboneConfig:
    """A DINOv2 vision transformer without registers (Oquab et al. 2023)."""

    name: str
    embed_dim: int
    depth: int
    heads: int
    stages: tuple[int, int, int, int]
    """Blocks whose output feeds MSTR, 0-based."""
    patch_size: int = 14
    position_grid: int = 37
    """Side of the square grid on which position embeddings were trained (518 / 14 for DINOv2)."""
    mlp_ratio: int = 4


BACKBONES = {
    "vit_tiny": BackboneConfig("vit_tiny", 192, 6, 3, (1, 2, 4, 5), position_grid=16),
    "vit_small": BackboneConfig("vit_small", 384, 12, 6, (2, 5, 8, 11)),
    "vit_base": BackboneConfig("vit_base", 768, 12, 12, (2, 5, 8, 11)),
    "vit_large": BackboneConfig("vit_large", 1024, 24, 16, (4, 11, 17, 23)),
}


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of one M2H network. `variant` names the preset that it is based on."""

    variant: str
    backbone: BackboneConfig
    channels: int
    """Width C of the decoder: 256 in the paper's M2H."""
    separable: bool
    """Depthwise separable decoder, and WMCA at C/4 channels on a 2x smaller grid (M2H-small)."""
    head_channels: tuple[int, int] = (128, 64)
    window_size: int = 7
    cross_heads: int = 4
    cross_layers: int = 2
    cross_task: Literal["wmca", "mha", "none"] = "wmca"
    """`mha` and `none` are the ablations of Table VI."""
    context: Literal["restoration", "ggfm"] = "restoration"
    """`restoration` is the block of the published network; `ggfm` is equations 11 to 14 and 5a, on all tasks."""
    num_classes: int = 41
    """Index 0 is unknown, 1 to 40 are NYUv2's classes."""
    min_depth: float = 1e-3
    max_depth: float = 10.0
    """Depth range in meters. The network adds `min_depth`; consumers clamp to the range."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> ModelConfig:
        """Build a configuration from the values of `to_dict`. Lists are accepted in place of tuples.

        Raises:
            M2HError: unknown or missing fields, or values that do not describe a valid network.
        """
        try:
            backbone = dict(values["backbone"])
            backbone["stages"] = tuple(backbone["stages"])
            rest: dict[str, Any] = {k: v for k, v in values.items() if k != "backbone"}
            rest["head_channels"] = tuple(rest["head_channels"])
            config = ModelConfig(backbone=BackboneConfig(**backbone), **rest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise M2HError(f"not the description of an M2H network: {error}") from None
        wrong = _wrong_type(config.backbone) or _wrong_type(config)
        if wrong is not None:
            raise M2HError(f"not the description of an M2H network: {wrong}")
        return _validated(config)


#: Upper limit of every number. A larger one is a mistake, and building the network could exhaust the memory.
_LARGEST = 65536


def _wrong_type(record: BackboneConfig | ModelConfig) -> str | None:
    """Describe the first field whose type differs from the presets or that is out of range; None if all are valid."""
    like: Any = BACKBONES["vit_small"] if isinstance(record, BackboneConfig) else VARIANTS["m2h"]
    for field in fields(record):
        value, model = getattr(record, field.name), getattr(like, field.name)
        items, models = (value, model) if isinstance(model, tuple) else ((value,), (model,))
        if not isinstance(items, tuple) or len(items) != len(models):
            return f"{field.name} is {value!r}, expected {len(models)} values"
        kinds = (int, float) if isinstance(models[0], float) else (type(models[0]),)
        for item in items:
            if not isinstance(item, kinds) or (isinstance(item, bool) and bool not in kinds):
                return f"{field.name} is {value!r}, expected {kinds[-1].__name__}"
            if isinstance(item, (int, float)) and not 0 <= item <= _LARGEST:
                return f"{field.name} is {value!r}, expected 0 to {_LARGEST}"
    return None


VARIANTS = {
    "m2h": ModelConfig("m2h", BACKBONES["vit_small"], channels=256, separable=False),
    "m2h-small": ModelConfig("m2h-small", BACKBONES["vit_small"], channels=96, separable=True),
    "m2h-tiny": ModelConfig("m2h-tiny", BACKBONES["vit_tiny"], channels=32, separable=True, head_channels=(24, 16)),
}


def make_config(variant: str = "m2h", *, backbone: str | None = None, **options: Any) -> ModelConfig:
    """Make the configuration of a preset with some fields replaced.

    Args:
        variant: a key of VARIANTS.
        backbone: a key of BACKBONES; None for the preset's own.
        **options: fields of ModelConfig to replace, and `patch_size` of the backbone.

    Raises:
        M2HError: an unknown name (the message lists the choices), or a value that does not describe a valid network.
    """
    if variant not in VARIANTS:
        raise M2HError(f"unknown variant '{variant}': choose one of {', '.join(VARIANTS)}")
    config = VARIANTS[variant]
    if backbone is not None:
        if backbone not in BACKBONES:
            raise M2HError(f"unknown backbone '{backbone}': choose one of {', '.join(BACKBONES)}")
        config = replace(config, backbone=BACKBONES[backbone])
    if (patch_size := options.pop("patch_size", None)) is not None:
        config = replace(config, backbone=replace(config.backbone, patch_size=patch_size))
    try:
        config = replace(config, **options)
    except TypeError as error:
        raise M2HError(f"unknown model option: {error}") from None
    return _validated(config)


def _validated(config: ModelConfig) -> ModelConfig:
    vit = config.backbone
    for name in ("embed_dim", "depth", "heads", "patch_size", "position_grid", "mlp_ratio"):
        if getattr(vit, name) < 1:
            raise M2HError(f"backbone.{name}={getattr(vit, name)}: must be at least 1")
    if vit.embed_dim % vit.heads:
        raise M2HError(f"backbone.embed_dim={vit.embed_dim} cannot be split over {vit.heads} attention heads")
    if list(vit.stages) != sorted(set(vit.stages)) or not all(0 <= stage < vit.depth for stage in vit.stages):
        raise M2HError(f"backbone.stages={vit.stages}: must be four increasing indices of {vit.depth} blocks")
    if min(config.head_channels) < 1:
        raise M2HError(f"head_channels={config.head_channels}: must be at least 1")
    width = config.channels // 4 if config.separable else config.channels
    choices = {"cross_task": ("wmca", "mha", "none"), "context": ("restoration", "ggfm")}
    for field, allowed in choices.items():
        if getattr(config, field) not in allowed:
            raise M2HError(f"{field}='{getattr(config, field)}': choose one of {', '.join(allowed)}")
    positive = ("channels", "window_size", "cross_heads", "cross_layers", "num_classes")
    for field in positive:
        if getattr(config, field) < 1:
            raise M2HError(f"{field}={getattr(config, field)}: must be at least 1")
    if width % config.cross_heads or (config.separable and config.channels % 4):
        raise M2HError(f"channels={config.channels} cannot be split over {config.cross_heads} attention heads")
    if not 0 < config.min_depth < config.max_depth:
        raise M2HError(f"depth range {config.min_depth} to {config.max_depth} m is empty")
    return config
