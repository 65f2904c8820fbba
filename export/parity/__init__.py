"""What was exported, held against the PyTorch reference: tensors, graphs, whole inspections."""
