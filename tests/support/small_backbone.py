"""A ResNet of one block per stage, the smallest backbone that has every kind of layer of a ResNet.

Tests of whole models build and trace their backbone again and again; half as many blocks show as much.
Importing this module registers it.
"""

from kgarden.backbones import BACKBONES
from kgarden.backbones.resnet import DEPTHS

DEPTHS[10] = ("basic", (1, 1, 1, 1))
BACKBONES["resnet10"] = ("resnet:ResNet", {"depth": 10})

RESNET10 = {"name": "resnet10", "norm": "bn", "stem_channels": 8, "res2_channels": 8}
