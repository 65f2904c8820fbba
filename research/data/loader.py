"""Batches of a data set, made by processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset


def make_loader(
    dataset: Dataset[Any],
    batch_size: int,
    workers: int,
    collate: Callable[[list[Any]], Any] | None,
) -> Iterable[Any]:
    """Batches of a data set in its order, made by `workers` processes (0: by this one)."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_single_thread,
        # Forked workers inherit OpenCV's locked thread pool and hang in its first call.
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=8 if workers else None,
    )


def _single_thread(_worker: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
