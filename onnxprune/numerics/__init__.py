"""Arrays in, arrays out: numpy and scipy only. Nothing here knows ONNX."""
