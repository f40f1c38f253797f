"""M2H: the whole network (paper, figure 1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from m2h_deploy.model.backbone import DINOv2
from m2h_deploy.model.config import ModelConfig, make_config
from m2h_deploy.model.ggfm import GlobalContext
from m2h_deploy.model.heads import DepthHead, EdgesHead, NormalsHead, SemanticsHead
from m2h_deploy.model.layers import resize
from m2h_deploy.model.msf import MSF
from m2h_deploy.model.mstr import MSTR
from m2h_deploy.model.wmca import WMCA
from m2h_deploy.tasks import TASKS


class M2H(nn.Module):
    """M2H network: an RGB image to metric depth, semantics, surface normals and edges.

    ```
    model = build_model("m2h-small").eval()
    outputs = model(image)                # image: (N, 3, H, W) float32, normalized
    outputs["depth"]                      # (N, 1, H, W) meters
    outputs["semantics"]                  # (N, classes, H, W) logits
    outputs["normals"]                    # (N, 3, H, W) unit vectors up to the last bilinear resize
    outputs["edges"]                      # (N, 1, H, W) logits
    ```
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = DINOv2(config.backbone)
        self.mstr = MSTR(config)
        self.msf = nn.ModuleDict({task: MSF(config) for task in TASKS})
        self.wmca = WMCA(config) if config.cross_task != "none" else None
        self.context = GlobalContext(config)
        self.heads = nn.ModuleDict(
            {
                "depth": DepthHead(config),
                "semantics": SemanticsHead(config),
                "normals": NormalsHead(config),
                "edges": EdgesHead(config),
            }
        )

    def forward(self, image: Tensor, record: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Compute the four outputs at the image's size, in the order of TASKS.

        The backbone pads the image to whole patches around its center. The outputs cover the padded image and are
        resized to H x W, as in the published network.

        Args:
            image: (N, 3, H, W), float32, normalized; any H and W.
            record: if given, receives intermediate features by name: `reassembled_i` (MSTR), `task_t` (MSF),
                `wmca_i_t`, `context_t`.

        Returns:
            Depth (N, 1, H, W) in meters, semantics (N, classes, H, W) logits, normals (N, 3, H, W), edges (N, 1, H, W)
            logits.
        """
        stages = self.backbone(image)
        maps = self.mstr(stages, record)
        features = {task: self.msf[task](maps) for task in TASKS}
        if record is not None:
            record.update({f"task_{task}": features[task] for task in TASKS})
        attended = features if self.wmca is None else self.wmca(features, record)
        fused = self.context(attended, features, stages[-1], record)
        size = (image.shape[2], image.shape[3])
        return {task: resize(self.heads[task](fused[task]), size) for task in TASKS}


def build_model(variant: str = "m2h", **options: Any) -> M2H:
    """Build a freshly initialized network.

    Args:
        variant: a key of VARIANTS.
        **options: see `make_config`.

    Raises:
        M2HError: an unknown name, or a value that does not describe a valid network.
    """
    return M2H(make_config(variant, **options))
