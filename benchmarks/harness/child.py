"""The process that `job.run` starts: `python -m harness.child JOB ANSWER`, two JSON files.

Imports no more than it needs: what a task imports may be timed, and counts in its memory.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from harness.memory import keep_freed_pages, peak_mb


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job; {"not_run": reason} where something is not installed or not there."""
    if job["keep_pages"]:
        keep_freed_pages()
    module, function = job["task"].split(":")
    try:
        task = getattr(importlib.import_module(module), function)
        found: dict[str, Any] = task(
            **job["arguments"], threads=job["threads"], started=job["started"]
        )
    except ModuleNotFoundError as error:
        return {"not_run": f"{error.name} is not installed."}
    except Exception as error:
        from clipsam.runtime.core.errors import ClipSAMError

        if not isinstance(error, ClipSAMError):
            raise
        return {"not_run": str(error)}
    return {"peak_rss_mb": peak_mb(), **found}


if __name__ == "__main__":
    _job, _answer = map(Path, sys.argv[1:])
    _answer.write_text(json.dumps(answer(json.loads(_job.read_text()))))
