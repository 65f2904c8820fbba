"""What tests share: small models, files of all kinds, stand-ins for NVIDIA's libraries."""
