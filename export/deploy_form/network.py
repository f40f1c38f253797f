"""The complete network in deploy form."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from export.deploy_form.backbone import DeployDINOv2
from export.deploy_form.ggfm import deploy_merge
from export.deploy_form.heads import deploy_head
from export.deploy_form.msf import DeployMSF
from export.deploy_form.mstr import DeployMSTR
from export.deploy_form.wmca import LocalPath
from m2h_deploy.model.network import M2H
from m2h_deploy.tasks import TASKS


class DeployM2H(nn.Module):
    """`M2H` for images of one height and width: (N, 3, H, W) to the four outputs of TASKS, the same function."""

    def __init__(self, model: M2H, height: int, width: int) -> None:
        super().__init__()
        self.backbone = DeployDINOv2(model.backbone, height, width)
        grid = self.backbone.grid
        self.mstr = DeployMSTR(model.mstr, grid)
        msf: Any = model.msf
        self.msf = nn.ModuleDict({task: DeployMSF(msf[task]) for task in TASKS})
        size = (16 * -(-grid[0] // 2), 16 * -(-grid[1] // 2))
        self.wmca = LocalPath(model.wmca)
        self.context = nn.ModuleDict(
            {task: deploy_merge(model.context, task, self.wmca, grid) for task in model.context.tasks}
        )
        self.heads = nn.ModuleDict({task: deploy_head(model.heads[task], size, (height, width)) for task in TASKS})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Run the network on normalized float32 images (N, 3, H, W).

        Returns:
            `depth` (N, 1, H, W) in meters, `semantics` (N, classes, H, W) logits, `normals` (N, 3, H, W) and `edges`
            (N, 1, H, W) logits, in the order of TASKS.
        """
        stages = self.backbone(image)
        maps = self.mstr(stages)
        features = {task: self.msf[task](maps) for task in TASKS}
        local = self.wmca(features)
        outputs = {}
        for task in TASKS:
            if task in self.context:
                fused = self.context[task](local[task], features[task], stages[-1])
            else:
                fused = self.wmca.full(task, local[task])
            outputs[task] = self.heads[task](fused)
        return outputs
