"""How long a report takes to open, to count again and to filter, in Chromium.

python benchmarks/bench_report.py report.html

Needs `pip install 'clipsam[browser]'` and Chromium. Prints the median of several times.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

# Each draws synchronously; two frames later it is on the screen.
TIMED = """() => new Promise((done) => {
    const start = performance.now();
    ACT;
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - start)));
})"""
ACTS = {
    "slider moved": "const s = document.getElementById('slider'); s.value = s.max * Math.random();"
    " s.dispatchEvent(new Event('input'));",
    "verdict chosen": "document.querySelector('[data-key=\"good\"]').click();",
    "word looked for": "const f = document.getElementById('find'); f.value = '7';"
    " f.dispatchEvent(new Event('input'));",
    "time chosen": "document.querySelector('#trend .hit').dispatchEvent(new Event('click'));",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--width", type=int, default=1280)
    args = parser.parse_args()
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        print(f"Chromium {browser.version}, {args.report.stat().st_size / 1e6:.1f} MB")
        times: dict[str, list[float]] = {"opened": []}
        for _ in range(args.runs):
            page = browser.new_page(viewport={"width": args.width, "height": 844})
            page.goto(args.report.resolve().as_uri())
            times["opened"].append(opened(page))
            for name, act in ACTS.items():
                times.setdefault(name, []).append(page.evaluate(TIMED.replace("ACT;", act)))
            heap = page.evaluate("performance.memory.usedJSHeapSize")
            page.close()
        browser.close()
    for name, all_times in times.items():
        print(f"{name:16} {statistics.median(all_times):8.0f} ms")
    print(f"{'script memory':16} {heap / 1e6:8.0f} MB")
    return 0


def opened(page: Any) -> float:
    """Milliseconds until the page was loaded and drawn."""
    return float(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))


if __name__ == "__main__":
    raise SystemExit(main())
