"""Static quantization as standard QDQ ONNX."""
