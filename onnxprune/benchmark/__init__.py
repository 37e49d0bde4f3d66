"""Measured time of whole models: `onnxprune bench`, on the CPU, CUDA and TensorRT."""
