"""Plain array functions: components, resizing, masks brought to image size. Import nothing of stages."""
