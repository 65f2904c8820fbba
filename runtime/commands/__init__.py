"""Every subcommand of `clipsam`: one entry here, one module with a `main(argv) -> exit code`.

Modules are named, not imported: `clipsam --help` costs nothing, and the box needs neither PyTorch
nor onnx for the commands it uses.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """A subcommand that is imported when it is asked for.

    Attributes:
      module: name of the module in `clipsam`; its `main` takes the arguments and returns the
        exit code.
      extra: the extra of this package whose libraries it needs; "" when it needs none.
      help: one line for `clipsam --help`.
    """

    module: str
    extra: str
    help: str


COMMANDS = {
    "inspect": Command("runtime.commands.inspection", "", "inspect images"),
    "calibrate": Command(
        "runtime.commands.calibration", "", "a limit with a promise, from good parts"
    ),
    "info": Command("runtime.commands.info", "", "print what a bundle is"),
    "watch": Command("runtime.commands.watch", "station", "judge parts as a camera brings them"),
    "serve": Command(
        "runtime.commands.serve", "serve", "inspect over HTTP, with a page to look at"
    ),
    "batch": Command(
        "runtime.commands.batch", "ray", "inspect millions of pictures, on many machines"
    ),
    "store": Command(
        "runtime.commands.store", "", "`store check|export|prune|push`: what watch wrote"
    ),
    "label": Command("runtime.commands.label", "", "keep what a person said of a part"),
    "report": Command("runtime.commands.report", "report", "one HTML page of what was found"),
    "triton": Command(
        "runtime.commands.triton_repository", "", "a model repository for Triton Inference Server"
    ),
    "export": Command("export.build_engines", "export", "build a bundle from weights"),
    "adapt": Command("export.adapt", "export", "fine-tune a model to one product's good parts"),
    "words": Command("export.words", "research", "teach a bundle further words"),
    "audit": Command("export.audit", "export", "what of a bundle's graphs a GPU would not run"),
    "diagnose": Command(
        "export.trt.diagnose", "diagnose", "find the layer that makes an engine wrong"
    ),
    "train": Command("research.train", "train", "train UMCI on a frozen CLIP"),
    "train-naming": Command("research.train_naming", "research", "train what names defects"),
    "evaluate": Command(
        "research.evaluate", "evaluate", "measure a bundle or the model on a data set"
    ),
    "ablations": Command("research.ablations", "research", "what each part of the method adds"),
    "refinement": Command("research.refinement", "research", "what SAM adds to the rough map"),
    "dataset": Command(
        "research.dataset_check", "research", "`dataset check ROOT`: check a data set"
    ),
    "pretrain-tiny": Command(
        "research.pretrain_tiny", "research", "train the tiny preset's CLIP and SAM"
    ),
}
