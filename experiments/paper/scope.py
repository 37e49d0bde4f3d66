"""Which networks, and which of their groups, the sections measure: of a folder of trained models, or of the bundled
ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

RESNET56 = "cifar10_resnet56_legacy_folded"
RESNET56_BN = "cifar10_resnet56_legacy_bn"
RESNET20 = "cifar10_resnet20_legacy_folded"
MOBILENET = "imagenet_mobilenet_v2_1.0_224"
MNIST_MLP = "mnist_mlp_legacy"
MNIST_VGG = "mnist_vggbn_legacy"
DIGITS_RESNET = "digits_resnet"
DIGITS_MOBILENET = "digits_mobilenet"


@dataclass(frozen=True)
class Place:
    """A group of a network, by a part of its name.

    samples: for calibration. by_network: of these, how many section 2 takes for a walk that evaluates the network
    itself at every step; 0 for none, where that would take longer than all other sections.
    """

    network: str
    group: str
    samples: int
    by_network: int = 128

    @property
    def key(self) -> str:
        """Of its row."""
        return f"{self.network}, {self.group}"


@dataclass(frozen=True)
class Scope:
    """What is measured, by section.

    places: 1. alone: 2. mixed: 3, steps that evaluate the network after every step. folded: 4. units, columns: 5,
    sizes of synthetic layers. timed: 5, the network whose gradients are timed, and numbers of samples. equal: 7,
    networks. interval: 8. kept: 1, the network whose widths are shown, the share of MACs that goes, and the samples.
    """

    places: tuple[Place, ...]
    alone: tuple[Place, ...]
    mixed: tuple[Place, ...]
    folded: tuple[Place, ...]
    units: tuple[int, ...]
    columns: tuple[int, ...]
    timed: tuple[str, tuple[int, ...]]
    equal: tuple[str, ...]
    interval: Place
    kept: tuple[str, float, int]


_DIGITS = (
    Place(DIGITS_RESNET, "/3/conv1", 256),
    Place(DIGITS_RESNET, "/6/conv1", 256),
    Place(DIGITS_MOBILENET, "node_Conv_292", 256),
)
_RESNET = (
    Place(RESNET56, "layer1.4/conv1", 256, by_network=0),
    Place(RESNET56, "layer2.4/conv1", 256, by_network=0),
    Place(RESNET56, "layer3.7/conv1", 256, by_network=0),
)
_VGG, _MLP = Place(MNIST_VGG, "f.8.0/Conv", 256), Place(MNIST_MLP, "b.1", 256)
_MOBILENET = Place(MOBILENET, "op17.0/Conv", 64, by_network=0)
FULL = Scope(
    places=(*_RESNET, _MOBILENET, _VGG, _MLP),
    alone=(*_RESNET, _MOBILENET, _VGG, _MLP, *_DIGITS),
    mixed=(*_RESNET, _VGG, _MLP),
    folded=(_RESNET[1], _MLP),
    units=(64, 128, 256, 512),
    columns=(128, 256, 512, 1024),
    timed=(MNIST_VGG, (128, 256, 512, 1024)),
    equal=(RESNET56, RESNET56_BN),
    interval=_RESNET[2],
    kept=(RESNET56, 0.5, 512),
)
QUICK = replace(
    FULL,
    places=(_RESNET[1], _MLP),
    alone=(_RESNET[1], _MLP),
    mixed=(_RESNET[1],),
    folded=(_RESNET[1],),
    units=(64, 128, 256),
    columns=(128, 256, 512),
    timed=(MNIST_VGG, (64, 128, 256)),
    equal=(RESNET56,),
    kept=(RESNET20, 0.5, 256),
)
BUNDLED = Scope(
    places=_DIGITS,
    alone=_DIGITS,
    mixed=_DIGITS,
    folded=_DIGITS[::2],
    units=(32, 64, 128),
    columns=(64, 128, 256),
    timed=(DIGITS_RESNET, (64, 128, 256)),
    equal=(DIGITS_RESNET, DIGITS_MOBILENET),
    interval=_DIGITS[1],
    kept=(DIGITS_RESNET, 0.5, 256),
)
BUNDLED_QUICK = replace(
    BUNDLED,
    places=_DIGITS[:1],
    alone=_DIGITS[:1],
    mixed=_DIGITS[:1],
    folded=_DIGITS[:1],
    units=(16, 32, 64),
    columns=(64, 128),
    timed=(DIGITS_RESNET, (32, 64, 96)),
    equal=(DIGITS_RESNET,),
)
