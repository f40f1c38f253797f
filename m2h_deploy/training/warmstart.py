"""Warm start of a backbone that has no published weights.

M2H builds on a pretrained DINOv2. A smaller backbone has to learn its features from the frames at hand, and
below M2H's decoder that is slow: nearly all the time goes into the decoder's large maps. Here the same four
tasks are read off the tokens by a few small convolutions, CELLS x CELLS values a patch; afterwards only the backbone
is kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model import M2H
from m2h_deploy.training.batches import Batch, resize_labels

#: Outputs a patch and side: 4 x 4 values for 14 x 14 pixels.
CELLS = 4

_WIDTH = 256
#: Fresh networks guess this depth, meters: from 0 the first steps would only find the scale.
_FIRST_DEPTH = 2.5


class PatchDecoder(nn.Module):
    """Four stages of tokens to the four outputs, CELLS times the patch grid: (N, C, CELLS * h, CELLS * w) each."""

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.channels = {"depth": 1, "semantics": num_classes, "normals": 3, "edges": 1}
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dim) for _ in range(4))
        self.mix1 = nn.Conv2d(4 * embed_dim, _WIDTH, 3, padding=1)
        self.mix2 = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)
        self.out = nn.Conv2d(_WIDTH, sum(self.channels.values()) * CELLS**2, 1)
        with torch.no_grad():
            assert self.out.bias is not None
            self.out.bias[: CELLS**2] = _FIRST_DEPTH

    def forward(self, stages: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        maps = [
            norm(patches.movedim(1, 3)).movedim(3, 1) for norm, (patches, _) in zip(self.norms, stages, strict=True)
        ]
        x = F.gelu(self.mix1(torch.cat(maps, dim=1)))
        x = x + F.gelu(self.mix2(x))
        values = F.pixel_shuffle(self.out(x), CELLS).split(list(self.channels.values()), dim=1)
        return dict(zip(self.channels, values, strict=True))


class PatchNetwork(nn.Module):
    """A model's backbone below a patch decoder; trains the model's own backbone in place."""

    def __init__(self, model: M2H) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.decoder = PatchDecoder(model.config.backbone.embed_dim, model.config.num_classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.decoder(self.backbone(image))


def patch_labels(batch: Batch, patch_size: int) -> Batch:
    """The batch with its labels at the patch decoder's size; images must hold whole patches."""
    height, width = (CELLS * (side // patch_size) for side in batch.image.shape[2:])
    return resize_labels(batch, (height, width))


def _keep_deviation(module: nn.Conv2d | nn.ConvTranspose2d) -> None:
    # The transposed convolutions have no overlap: an output is the sum over input channels of one tap.
    taps = module.in_channels if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
    nn.init.normal_(module.weight, std=taps**-0.5)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def prepare_fresh(model: M2H, layer_scale: float) -> None:
    """Start values that suit short training from nothing: the decoder, LayerScale (where not 0), depth's bias.

    PyTorch's own start shrinks a map to a third of its deviation in a separable convolution. Behind the dozen of
    M2H-small's decoder, which has no norms before the heads, tokens of deviation 1 were seen to arrive with 0.005,
    below the biases. Here every convolution keeps the deviation of its input, and biases begin at 0.
    """
    for name, module in model.named_modules():
        if not name.startswith("backbone.") and isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            _keep_deviation(module)
    with torch.no_grad():
        if layer_scale:
            for block in model.backbone.blocks:
                block.ls1.gamma.fill_(layer_scale)  # type: ignore[operator, union-attr]
                block.ls2.gamma.fill_(layer_scale)  # type: ignore[operator, union-attr]
        # The head ends in a ReLU: where a fresh one is below 0 everywhere it would never learn.
        model.heads["depth"].final.bias.fill_(_FIRST_DEPTH)  # type: ignore[operator, union-attr]
