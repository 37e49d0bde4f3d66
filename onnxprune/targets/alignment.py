"""Where the pruned model will run, and the multiples of channels that this place computes without waste.

Sources of the alignments, all in channels of a layer's input and output (K and N of a matrix product):

- *TensorRT*: developer guide, "Optimizing for Tensor Cores": suggested tensor dimension alignment 4 for TF32, 8 for
  FP16 (dense), 32 for INT8, on the input and output channels of Convolution and Deconvolution and on K and N of
  MatrixMultiply. Others are padded to it, so a narrower layer is no quicker, only smaller.
- *CUDA*: "Matrix Multiplication Background User's Guide" (NVIDIA Deep Learning Performance), requirements of Tensor
  Cores: with cuBLAS 11.0 and cuDNN 7.6.3 or newer any size works, and multiples of 16 bytes work best: 4 of TF32, 8 of
  FP16, 16 of INT8. 8 serves the first two, as one file is run in either.
- *CPU*: onnxruntime's `nchwc_transformer.cc` runs float convolutions in blocks of `MlasNchwcGetBlockSize()` channels,
  8 with AVX2 and 16 with AVX-512. Channels of an ordinary convolution are padded to whole blocks; a depthwise or
  grouped one is left out of the blocked layout unless its channels fill them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

AUTO = "auto"


@dataclass(frozen=True)
class Target:
    """A runtime on a device, with a number type.

    provider: the execution provider of onnxruntime that stands for it. alignment: channels. tensorrt: whether the model
    must pass TensorRT's ONNX parser. integers: whether tensors are stored there in codes of eight bits.
    """

    name: str
    provider: str
    alignment: int
    tensorrt: bool = False
    integers: bool = False


TARGETS: Mapping[str, Target] = {
    t.name: t
    for t in (
        Target("ort-cpu", "CPUExecutionProvider", 8),
        Target("ort-cuda", "CUDAExecutionProvider", 8),
        Target("tensorrt-fp16", "TensorrtExecutionProvider", 8, tensorrt=True),
        Target("tensorrt-int8", "TensorrtExecutionProvider", 32, tensorrt=True, integers=True),
    )
}
DEFAULT = "ort-cpu"
