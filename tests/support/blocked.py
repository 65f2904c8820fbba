"""Code for a fresh interpreter that cannot import what `BLOCKED` names."""

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
assert not set(BLOCKED) & set(sys.modules)
"""
