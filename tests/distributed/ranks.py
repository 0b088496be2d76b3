"""Real processes that talk over gloo on loopback: `results = run_ranks(function, 2, *arguments)`, one result per rank."""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_ranks(function: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """`function(rank, *arguments)` in `world` new processes of one group."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(world, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_one, rank, world, str(Path(folder) / "meet"), function, arguments) for rank in range(world)]
        return [job.result(timeout=120) for job in jobs]


def _one(rank: int, world: int, meet: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    try:
        return function(rank, *arguments)
    finally:
        dist.destroy_process_group()
