"""Run the model on ONNX Runtime."""
