"""Every subcommand of `clipsam`: one entry here, one module with a `main(argv) -> exit code`.

Modules are named, not imported: `clipsam --help` costs nothing, and the box needs neither PyTorch
nor onnx for the commands it uses.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A subcommand that is imported when it is asked for.

    Attributes:
      module: full name of the module; its `main` takes the arguments and returns the exit code.
      extra: the extra of this package whose libraries it needs; "" when it needs none.
      help: one line for `clipsam --help`.
    """

    module: str
    extra: str
    help: str


COMMANDS = {
    "inspect": Command("clipsam.runtime.commands.inspection", "", "inspect images"),
    "calibrate": Command(
        "clipsam.runtime.commands.calibration", "", "a limit with a promise, from good parts"
    ),
    "info": Command("clipsam.runtime.commands.info", "", "print what a bundle is"),
    "watch": Command(
        "clipsam.runtime.commands.watch", "station", "judge parts as a camera brings them"
    ),
    "serve": Command(
        "clipsam.runtime.commands.serve", "serve", "inspect over HTTP, with a page to look at"
    ),
    "batch": Command(
        "clipsam.runtime.commands.batch", "ray", "inspect millions of pictures, on many machines"
    ),
    "store": Command(
        "clipsam.runtime.commands.store", "", "`store check|export|prune|push`: what watch wrote"
    ),
    "label": Command("clipsam.runtime.commands.label", "", "keep what a person said of a part"),
    "report": Command(
        "clipsam.runtime.commands.report", "report", "one HTML page of what was found"
    ),
    "triton": Command(
        "clipsam.runtime.commands.triton_repository",
        "",
        "a model repository for Triton Inference Server",
    ),
    "export": Command("clipsam.export.build_engines", "export", "build a bundle from weights"),
    "adapt": Command(
        "clipsam.export.adapt", "export", "fine-tune a model to one product's good parts"
    ),
    "words": Command("clipsam.export.words", "research", "teach a bundle further words"),
    "audit": Command(
        "clipsam.export.audit", "export", "what of a bundle's graphs a GPU would not run"
    ),
    "diagnose": Command(
        "clipsam.export.trt.diagnose", "diagnose", "find the layer that makes an engine wrong"
    ),
    "train": Command("clipsam.research.train", "train", "train UMCI on a frozen CLIP"),
    "train-naming": Command(
        "clipsam.research.train_naming", "research", "train what names defects"
    ),
    "evaluate": Command(
        "clipsam.research.evaluate", "evaluate", "measure a bundle or the model on a data set"
    ),
    "ablations": Command(
        "clipsam.research.ablations", "research", "what each part of the method adds"
    ),
    "refinement": Command(
        "clipsam.research.refinement", "research", "what SAM adds to the rough map"
    ),
    "dataset": Command(
        "clipsam.research.dataset_check", "research", "`dataset check ROOT`: check a data set"
    ),
    "pretrain-tiny": Command(
        "clipsam.research.pretrain_tiny", "research", "train the tiny preset's CLIP and SAM"
    ),
}
