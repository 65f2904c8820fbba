"""UMCI, CLIP's taps, the tiny models, presets, and the reference: the oracle of the method."""
