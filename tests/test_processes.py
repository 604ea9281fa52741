"""Who a process is, and how many a run has."""

from __future__ import annotations

import pytest

from hubdistill.plan_checks import planned_processes
from hubdistill.processes import Processes, told, visible_gpus, without_group
from hubdistill.recipe import load_recipe
from tests import tiny


def test_who_this_is_comes_from_the_environment():
    assert told({}) == Processes()
    assert told({}).alone
    assert told({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Processes(3, 8, 1)
    assert without_group({"RANK": "3", "MASTER_ADDR": "here", "HOME": "/"}) == {"HOME": "/"}


@pytest.mark.parametrize(("named", "count"), [("0,1,3", 3), ("", 0), ("-1", 0), ("2", 1)])
def test_gpus_are_counted_without_cuda(named, count, tmp_path):
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": named}, tmp_path) == count


def test_gpus_of_the_driver_are_counted_where_none_is_named(tmp_path):
    assert visible_gpus({}, tmp_path / "none") == 0
    (tmp_path / "0000:01:00.0").mkdir()
    assert visible_gpus({}, tmp_path) == 1


@pytest.mark.parametrize(
    ("gpus", "overrides", "processes"),
    [("0,1", [], 2), ("0,1,2", [], 2), ("0", [], 1), ("0,1", ["train.device=cpu"], 1), ("0,1", ["teacher.device=cuda:1"], 1), ("0,1", ["train.distributed.processes=1"], 1)],
)
def test_a_process_for_each_gpu_that_shares_the_step_evenly(gpus, overrides, processes, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    recipe = load_recipe(tiny.write_recipe(tmp_path), ["train.device=auto", *overrides]).recipe
    assert planned_processes(recipe) == processes


def test_torchrun_s_processes_count(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert planned_processes(load_recipe(tiny.write_recipe(tmp_path), []).recipe) == 4
