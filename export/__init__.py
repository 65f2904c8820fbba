"""From PyTorch weights to a bundle: graphs, parity, engines."""

import clipsam.runtime  # noqa: F401 - settings of libraries that read them when imported
