"""Mask R-CNN: from a pyramid of features to boxes, classes and masks, by torchvision.

He et al., arXiv 1703.06870, on the feature pyramid of Lin et al., arXiv 1612.03144. It is torchvision's
Mask R-CNN, which is not quite mmdetection's, in which the published numbers were made: the box losses are
smooth L1 with beta 1/9 and not L1, and RoIAlign takes 2 x 2 samples per bin, not aligned to pixel centres,
where the other takes as many as the bin has pixels, aligned. Numbers from the two differ by some tenths of
AP.

Under autocast the convolutions and linear layers run in half precision, but boxes, scores and losses are
float32: bfloat16 has 8 bits, with which a coordinate above 512 is a multiple of 4.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.interface import TaskSpec
from experiments.skeletons.dense import channels_first

PROPOSALS, DETECTIONS = 1000, 100
"""Boxes that go through the box head and the mask head when costs are counted, as in mmdetection."""
BOX_SIDE, MASK_SIDE = 7, 14  # of the features that RoIAlign cuts out

PAPER: dict[str, Any] = {"rpn_post_nms_top_n_train": PROPOSALS}
"""The published size: torchvision's defaults, but for the proposals of an image in training, there 2,000."""
SLIM: dict[str, Any] = {
    "rpn_pre_nms_top_n_train": 200,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_train": 100,
    "rpn_post_nms_top_n_test": 100,
    "rpn_batch_size_per_image": 64,
    "box_batch_size_per_image": 64,
    "box_detections_per_img": 30,
}
"""For objects of some 10 to 60 pixels on small images, and small computers."""


class MaskRCNN(nn.Module):
    """Feature pyramid, region proposals, box head, mask head.

    Images are resized in it: the shorter side to the shorter of the task's grid, unless the longer one would
    then exceed the longer one. They are padded with zeros to multiples of 32 and to the batch's largest, also
    where it gets only a part of the batch, if the targets know the sizes in all of it.

    Args:
        dims: channels of the maps it reads, strides growing by 2.
        task: says the classes and the size that images are brought to.
        slim: a thirtieth of the width, one anchor per place, smaller anchors.
    """

    def __init__(self, dims: Sequence[int], task: TaskSpec, slim: bool) -> None:
        # Here, not above: torchvision.ops imports half of torch, and few skeletons have this head.
        from torchvision.models import detection
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
        from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        super().__init__()
        width, hidden, masks = (32, 128, (32, 32)) if slim else (256, 1024, (256,) * 4)
        smallest, ratios = (8, (1.0,)) if slim else (32, (0.5, 1.0, 2.0))
        levels = [str(level) for level in range(len(dims))]
        classes = 1 + task.classes  # the background is class 0
        self.out_channels = width
        self.fpn = FeaturePyramidNetwork(list(dims), width, extra_blocks=LastLevelMaxPool())
        detector = detection.MaskRCNN(
            _Width(width),
            min_size=min(task.grid),
            max_size=max(task.grid),
            image_mean=[0.0] * task.channels,  # the task's images are normalised
            image_std=[1.0] * task.channels,
            rpn_anchor_generator=AnchorGenerator(
                tuple((smallest << level,) for level in range(len(dims) + 1)), (ratios,) * (len(dims) + 1)
            ),
            box_roi_pool=MultiScaleRoIAlign(levels, BOX_SIDE, sampling_ratio=2),
            box_head=TwoMLPHead(width * BOX_SIDE**2, hidden),
            box_predictor=FastRCNNPredictor(hidden, classes),
            mask_roi_pool=MultiScaleRoIAlign(levels, MASK_SIDE, sampling_ratio=2),
            mask_head=MaskRCNNHeads(width, masks, dilation=1),
            mask_predictor=MaskRCNNPredictor(masks[-1], masks[-1], classes),
            **(SLIM if slim else PAPER),
        )
        self.transform, self.rpn, self.roi_heads = detector.transform, detector.rpn, detector.roi_heads
        for module in (self.rpn.head, self.roi_heads.box_predictor, self.roi_heads.mask_predictor):
            module.register_forward_hook(_in_float32)

    def forward(
        self,
        pyramid: Callable[[Tensor], list[Tensor]],
        images: list[Tensor],
        targets: list[dict[str, Tensor]] | None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """In training the losses by name, else the detections in each image.

        Args:
            pyramid: the backbone: (B, channels, H, W) -> maps (B, h, w, C).
            images: (channels, H, W) each.
            targets: boxes (n, 4), labels (n,), masks (n, H, W) and, where sizes differ, batch_sizes (B, 2) of
                each image, in training.
        """
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        batch, resized = self.transform(images, targets if self.training else None)
        if resized is not None and "batch_sizes" in resized[0]:
            batch.tensors = self._padded(batch.tensors, resized[0]["batch_sizes"])
        features = self.levels(pyramid(batch.tensors))
        proposals, proposal_losses = self.rpn(batch, features, resized)
        found, losses = self.roi_heads(features, proposals, batch.image_sizes, resized)
        if self.training:
            return {**losses, **proposal_losses}
        return self.transform.postprocess(found, batch.image_sizes, sizes)

    def _padded(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Some resized images of a batch (b, channels, H, W), padded like all of it.

        Args:
            images: of the batch, padded to the largest of them.
            sizes: heights and widths of all images of the batch before they are resized, (B, 2).
        """
        shapes = [
            self.transform.resize(torch.empty(1, *size, device="meta"))[0].shape[1:]
            for size in sizes.unique(dim=0).tolist()
        ]
        unit = self.transform.size_divisible
        height, width = (-(-max(sides) // unit) * unit for sides in zip(*shapes, strict=True))
        return F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))

    def levels(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Maps (B, h, w, C) -> the pyramid, (B, width, h, w) each, with one more of twice the last stride.

        In float32, because anchors are of the type of these maps.
        """
        pyramid = self.fpn(OrderedDict((str(level), channels_first(x)) for level, x in enumerate(maps)))
        return {level: x.float() for level, x in pyramid.items()}

    def nominal(self, maps: Sequence[Tensor]) -> None:
        """The work on one image with `PROPOSALS` proposals and `DETECTIONS` detections, whatever it shows."""
        features = list(self.levels(maps).values())
        self.rpn.head(features)
        boxes = features[0].new_zeros(PROPOSALS, self.out_channels, BOX_SIDE, BOX_SIDE)
        self.roi_heads.box_predictor(self.roi_heads.box_head(boxes))
        masks = features[0].new_zeros(DETECTIONS, self.out_channels, MASK_SIDE, MASK_SIDE)
        self.roi_heads.mask_predictor(self.roi_heads.mask_head(masks))


def initial_std(name: str, weight: Tensor) -> float:
    """Standard deviation of a fresh weight: small where decisions are made, as in mmdetection, else He's.

    mmdetection draws those of the pyramid and of the box head's shared layers by Xavier's rule.

    Args:
        name: of the parameter in the head.
        weight: (out, in, ...), or (in, out, 2, 2) of the mask head's transposed convolution.
    """
    if name.startswith("rpn.") or "cls_score" in name:
        return 0.01
    if "bbox_pred" in name:
        return 0.001
    inputs = weight[0].numel() if "conv5_mask" not in name else weight.shape[0]  # each output sees one tap
    gain = 1.0 if name.startswith("fpn.") else 2.0  # a ReLU follows
    return (gain / inputs) ** 0.5


def _in_float32(module: nn.Module, arguments: Any, output: Any) -> Any:
    """A forward hook: the output, tensors in tuples or lists, in float32."""
    if isinstance(output, Tensor):
        return output.float()
    return type(output)(_in_float32(module, arguments, each) for each in output)


class _Width(nn.Module):
    """Stands in for a backbone: torchvision reads only `out_channels` from it."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels
