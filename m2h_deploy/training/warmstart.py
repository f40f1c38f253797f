"""Warm start of a backbone that has no published weights.

M2H builds on a pretrained DINOv2. A smaller backbone has to learn its features from the available frames. With M2H's
decoder that is slow, because nearly all the time goes into the decoder's large maps. Here a few small convolutions
predict the same four tasks from the tokens, CELLS x CELLS values per patch. Afterwards only the backbone is kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2h_deploy.model import M2H
from m2h_deploy.training.batches import Batch, resize_labels

#: Outputs per patch and side: 4 x 4 values for 14 x 14 pixels.
CELLS = 4

_WIDTH = 256
#: Initial depth prediction, in meters. From 0 the first steps would only learn the scale.
_FIRST_DEPTH = 2.5


class PatchDecoder(nn.Module):
    """Small decoder: four stages of tokens to the four outputs, at CELLS times the patch grid."""

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
        """Predict the four tasks.

        Args:
            stages: patch map (N, E, h, w) and class token (N, E, not used) of each of the four stages.

        Returns:
            (N, C, CELLS * h, CELLS * w) by task: depth in meters, semantics and edges as logits, normals of any length.
        """
        maps = [
            norm(patches.movedim(1, 3)).movedim(3, 1) for norm, (patches, _) in zip(self.norms, stages, strict=True)
        ]
        x = F.gelu(self.mix1(torch.cat(maps, dim=1)))
        x = x + F.gelu(self.mix2(x))
        values = F.pixel_shuffle(self.out(x), CELLS).split(list(self.channels.values()), dim=1)
        return dict(zip(self.channels, values, strict=True))


class PatchNetwork(nn.Module):
    """A model's own backbone, trained in place, with a patch decoder."""

    def __init__(self, model: M2H) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.decoder = PatchDecoder(model.config.backbone.embed_dim, model.config.num_classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predict the four tasks: (N, 3, H, W), normalized, to the outputs of `PatchDecoder`."""
        return self.decoder(self.backbone(image))


def patch_labels(batch: Batch, patch_size: int) -> Batch:
    """Resize the labels to the patch decoder's output size. The images must consist of whole patches."""
    height, width = (CELLS * (side // patch_size) for side in batch.image.shape[2:])
    return resize_labels(batch, (height, width))


def _keep_deviation(module: nn.Conv2d | nn.ConvTranspose2d) -> None:
    # The taps of the transposed convolutions do not overlap: an output is the sum over input channels of one tap.
    taps = module.in_channels if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
    nn.init.normal_(module.weight, std=taps**-0.5)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def prepare_fresh(model: M2H, layer_scale: float) -> None:
    """Initialize a network for short training from random weights: decoder, LayerScale and depth's bias.

    With PyTorch's own initialization a separable convolution shrinks the standard deviation of a map to a third. After
    the dozen of them in M2H-small's decoder, which has no norms before the heads, tokens of deviation 1 arrived with
    0.005, below the biases. Here every convolution keeps the deviation of its input, and biases start at 0.

    Args:
        model: the network, changed in place.
        layer_scale: initial LayerScale of the backbone; 0 to keep it as it is.
    """
    for name, module in model.named_modules():
        if not name.startswith("backbone.") and isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            _keep_deviation(module)
    with torch.no_grad():
        if layer_scale:
            for block in model.backbone.blocks:
                block.ls1.gamma.fill_(layer_scale)  # type: ignore[operator, union-attr]
                block.ls2.gamma.fill_(layer_scale)  # type: ignore[operator, union-attr]
        # The head ends in a ReLU: an output that starts below 0 everywhere would never learn.
        model.heads["depth"].final.bias.fill_(_FIRST_DEPTH)  # type: ignore[operator, union-attr]
