"""The networks of the zoo with few channels and blocks: what makes each of them difficult is still there."""

import functools
from pathlib import Path

import torch

from hwsearch.compress.recover import reestimate_batch_norm
from hwsearch.config import DataConfig
from hwsearch.model.data import load_splits
from hwsearch.model.graph import trace
from hwsearch.zoo import mobilenet_v1, mobilenet_v2, repvgg, resnet_imagenet, shufflenet_v2, squeezenet, vit

BUILDERS = {
    "mobilenet_v1": lambda: mobilenet_v1.MobileNetV1(10, width=0.25, blocks=mobilenet_v1.BLOCKS[:4]),
    "mobilenet_v2": lambda: mobilenet_v2.MobileNetV2(10, width=0.5, stages=mobilenet_v2.STAGES[:3]),
    "squeezenet": lambda: squeezenet.SqueezeNet(10, width=0.125),
    "shufflenet_v2": lambda: shufflenet_v2.ShuffleNetV2(10, (8, 16, 32, 32, 32), units=(3, 1, 1)),
    "repvgg": lambda: repvgg.RepVGG(10, width=0.125, blocks=(1, 2, 2, 1)),
    "resnet_basic": lambda: resnet_imagenet.ResNet(resnet_imagenet.BasicBlock, (2, 1, 1, 1), 10, width=0.125),
    "resnet_bottleneck": lambda: resnet_imagenet.ResNet(resnet_imagenet.Bottleneck, (2, 1, 1, 1), 10, width=0.125),
    "vit_token": lambda: vit.ViT(10, heads=4, head_size=8, depth=2, patch=8),
    "vit_mean": lambda: vit.ViT(10, heads=4, head_size=8, depth=1, patch=8, pooling="mean"),
}


@functools.cache
def digits(split, count):
    """The first `count` images [count, 3, 32, 32] of a split."""
    return getattr(load_splits(DataConfig(source="digits"), base_dir=Path()), split).inputs[:count]


@functools.cache
def traced(name):
    """The traced network called `name`, its weights random and its norms those of the digits."""
    torch.manual_seed(0)
    module = BUILDERS[name]().eval()
    reestimate_batch_norm(module, digits("calibrate", 64))
    return trace(module, digits("calibrate", 1), name=name)
