"""VGG-16 up to the last ReLU of block 5, for perceptual terms (Simonyan and Zisserman, ICLR 2015)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
PREPROCESSING = ("caffe", "imagenet")


class VGG16(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> relu5_3, (B, 512, H / 8, W / 8).

    As in MUNIT's reference there is no pooling between blocks 4 and 5. `preprocessing` is that of the weights: "caffe"
    (BGR in 0..255, channel means removed) or "imagenet" (RGB in 0..1, mean and deviation).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: str = "caffe") -> None:
        super().__init__()
        self.preprocessing = preprocessing
        c_in = 3
        for i, block in enumerate(BLOCKS, 1):
            for j, c in enumerate(block, 1):
                self.add_module(f"conv{i}_{j}", nn.Conv2d(c_in, c, 3, padding=1))
                c_in = c
        caffe = preprocessing == "caffe"
        mean = (103.939, 116.779, 123.680) if caffe else (0.485, 0.456, 0.406)
        std = (1.0, 1.0, 1.0) if caffe else (0.229, 0.224, 0.225)
        dtype = torch.get_default_dtype()
        self.register_buffer(
            "mean", torch.tensor(mean, dtype=dtype).view(3, 1, 1), persistent=False
        )
        self.register_buffer("std", torch.tensor(std, dtype=dtype).view(3, 1, 1), persistent=False)

    def preprocess(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] -> what the weights were trained on."""
        x = (x + 1) / 2
        x = x.flip(1) * 255 if self.preprocessing == "caffe" else x
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        x = self.preprocess(x.expand(-1, 3, -1, -1))
        for i, block in enumerate(BLOCKS, 1):
            for j in range(1, len(block) + 1):
                x = F.relu(self.get_submodule(f"conv{i}_{j}")(x))
            if i < 4:
                x = F.max_pool2d(x, 2)
        return x
