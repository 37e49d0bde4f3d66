"""Where the result will run: alignments, and what TensorRT's parser accepts."""
