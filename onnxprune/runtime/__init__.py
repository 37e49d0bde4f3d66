"""Running models: onnxruntime's sessions, walks from tensor to tensor, and time."""
