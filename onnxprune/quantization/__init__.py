"""The result in fewer bits: 8-bit integers by onnxruntime's quantizer, or half precision, where layers bear it."""
