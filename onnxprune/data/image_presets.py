"""How images become what a model reads: a row for each preparation that is known by a name.

Whatever the row, an image is turned as its EXIF data say, brought to three channels, one, or four, resized, and each
value v of 8 bits becomes (v * scale - mean) / std, in 64 bits, rounded once to the type of the input:

- `stretch`: to the size, whatever that does to the proportions.
- `crop`: proportions stay; resized until it covers the size divided by `share`, then the centre of that size is cut out
  (torchvision's Resize and CenterCrop: the longer side is rounded down, half of an odd rest to the even number).
- `letterbox`: proportions stay; resized until it fits into the size, and the rest filled with 114 on both sides.

All are resampled by Pillow, which averages where it makes an image smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

RESIZES = ("stretch", "crop", "letterbox")
COLORS = ("rgb", "bgr", "gray")
LAYOUTS = ("nchw", "nhwc")
# What letterbox fills the rest with.
PADDING = 114


@dataclass(frozen=True)
class Preset:
    """One preparation.

    size: the side of the square where the model leaves it open; None where it has to be given. color: the order of the
    channels; None for red, green, blue, or gray where the model reads one channel. filter: Pillow's. share: of `crop`.
    mean, std: one number, or one for each channel in the order of `color`. known_from: who prepares images so.
    """

    size: int | None
    color: str | None
    resize: str
    filter: str
    share: float
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    known_from: str


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BYTE = 1.0 / 255.0

PRESETS: dict[str, Preset] = {
    "imagenet": Preset(224, "rgb", "crop", "bilinear", 224 / 256, _BYTE, *_IMAGENET, "torchvision, ONNX model zoo"),
    "imagenet-bicubic": Preset(224, "rgb", "crop", "bicubic", 0.875, _BYTE, *_IMAGENET, "timm, most of its networks"),
    "imagenet-caffe": Preset(
        224,
        "bgr",
        "crop",
        "bilinear",
        224 / 256,
        1.0,
        (103.939, 116.779, 123.68),
        (1.0,),
        "Caffe, Keras' VGG and ResNet",
    ),
    "inception": Preset(
        299, "rgb", "crop", "bicubic", 0.875, _BYTE, (0.5,), (0.5,), "timm's Inception and ViT: -1 to 1"
    ),
    "tf": Preset(224, "rgb", "stretch", "bilinear", 1.0, 2.0 / 255.0, (1.0,), (1.0,), "Keras' MobileNet: -1 to 1"),
    "clip": Preset(224, "rgb", "crop", "bicubic", 1.0, _BYTE, *_CLIP, "CLIP"),
    "yolo": Preset(640, "rgb", "letterbox", "bilinear", 1.0, _BYTE, (0.0,), (1.0,), "YOLOv5 and later: 0 to 1"),
    "unit": Preset(None, None, "stretch", "bilinear", 1.0, _BYTE, (0.0,), (1.0,), "0 to 1"),
    "raw": Preset(None, None, "stretch", "bilinear", 1.0, 1.0, (0.0,), (1.0,), "0 to 255, as the pixels are"),
}
