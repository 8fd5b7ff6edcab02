"""Export a checkpoint to ONNX graphs and prove the export equal to torch."""
