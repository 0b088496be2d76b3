"""Two real processes over gloo: embeddings, losses, gradients and a whole training equal those of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.halves import OBJECTIVES, PAIRS, Whole, free_pairs, of_rank, two_steps
from tests.distributed.ranks import run_ranks
from tests.train.test_pretrain import Told, one_thread, settings
from tests.train.tiny import make_shards, small
from vlm_core.checkpoint import read_weights
from vlm_core.objectives.gather import carrier
from vlm_core.train import launch
from vlm_core.train.fit import read_rows
from vlm_core.train.pretrain import train


@pytest.fixture(scope="module")
def ranks() -> list[Any]:
    return run_ranks(of_rank, 2)


def test_gathered_rows_come_in_rank_order_and_their_gradients_are_summed_over_ranks(ranks: list[Any]) -> None:
    results = [rank["gathered"] for rank in ranks]
    for all_ND, _ in results:
        assert all_ND.flatten().tolist() == [0.0, 0.0, 1.0, 1.0]
    assert [grad.flatten().tolist() for _, grad in results] == [[3.0, 6.0], [9.0, 12.0]]  # (1 + 2) * (j + 1)
    assert [rank["coin"] for rank in ranks] == [0.0, 0.0]


def test_a_number_drawn_on_the_cpu_goes_to_the_gpu_where_ranks_talk_over_nccl() -> None:
    cpu, second = torch.device("cpu"), torch.device("cuda", 1)
    assert [carrier("nccl", cpu), carrier("nccl", second)] == [torch.device("cuda"), second]
    assert [carrier("gloo", cpu), carrier("cpu:gloo,cuda:nccl", cpu)] == [cpu, cpu]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_gradients_and_state_of_two_ranks_equal_those_of_one_process(name: str, ranks: list[Any]) -> None:
    whole = Whole(OBJECTIVES[name])
    losses, gradients, buffers = two_steps(whole, whole, slice(0, PAIRS))
    of_ranks = [rank["steps"][name] for rank in ranks]
    for step, loss in enumerate(losses):
        assert sum(found[0][step] for found in of_ranks) / 2 == pytest.approx(loss, rel=1e-9)
    for found in of_ranks:
        for parameter, expected in gradients.items():
            torch.testing.assert_close(found[1][parameter], expected, rtol=1e-6, atol=1e-10, msg=lambda text, where=parameter: f"{where}: {text}")
        for buffer, expected in buffers.items():
            torch.testing.assert_close(found[2][buffer], expected, rtol=1e-9, atol=1e-12, msg=lambda text, where=buffer: f"{where}: {text}")


def test_mixing_partners_are_those_of_the_own_rank(ranks: list[Any]) -> None:
    image, text = free_pairs()
    own, partner = torch.arange(8), torch.tensor([3, 2, 1, 0, 7, 6, 5, 4])
    sides = [
        0.7 * torch.nn.functional.cross_entropy(5 * a @ b.T, own) + 0.3 * torch.nn.functional.cross_entropy(5 * a @ b.T, partner)
        for a, b in ((image, text), (text, image))
    ]  # fmt: skip
    loss = (sides[0] + sides[1]) / 2
    assert sum(rank["mixed"][0] for rank in ranks) / 2 == pytest.approx(float(loss.detach()), rel=1e-12)
    for side, expected in enumerate(torch.autograd.grad(loss, (image, text))):
        torch.testing.assert_close((ranks[0]["mixed"][1][side] + ranks[1]["mixed"][1][side]) / 2, expected, rtol=1e-9, atol=1e-14)


def test_two_processes_train_to_the_weights_of_one(tmp_path: Path) -> None:
    shards, config, told = make_shards(tmp_path / "shapes"), small("fit.epochs=3", "fit.accelerator=cpu"), Told()
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with one_thread():
        train(settings(config, shards), tmp_path / "one", Told())
    launch.run_ranks("vlm_core.train.pretrain:train", settings(config.but("fit.devices=2"), shards), tmp_path / "two", 2, told)
    one, two = (read_weights(tmp_path / name / "final.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():  # AdamW magnifies the rounding of tiny gradients; training moved these weights by hundreds of times as much
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
    losses = [[row["loss"] for row in read_rows(tmp_path / name)] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert [step for step, _ in told.rows] == [row["step"] for row in read_rows(tmp_path / "two")]
