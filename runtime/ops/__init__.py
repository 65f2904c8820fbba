"""Plain array functions: components, resizing, masks at image size. Import nothing of stages."""
