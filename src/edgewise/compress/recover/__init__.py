"""Training that makes up for what a compression lost; it needs PyTorch."""
