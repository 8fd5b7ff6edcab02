"""Export a checkpoint to ONNX graphs, and compare the export with torch."""
