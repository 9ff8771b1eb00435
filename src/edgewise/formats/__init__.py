"""Model files of any framework, read into `onnx_ir.Model`, checked, and written back. Nothing here runs a model."""
