"""Shared fixtures. Everything is offline: the Hub's client is told so before anything imports it."""

from __future__ import annotations

import gc
import os
import sys

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Many small tests in parallel processes: threads of each other's pools would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test may read the token of whoever runs it.
os.environ.pop("HF_TOKEN", None)

import pytest

from tests import tiny

imported = 0


def pytest_runtest_setup():
    """Set what was imported aside from garbage collection, whenever much was.

    A run of tiny models frees memory a few dozen times, and each time the collector would walk the millions of objects
    of torch and transformers: three quarters of a run's time. What a test makes is collected as ever.
    """
    global imported
    if len(sys.modules) > imported + 100:
        gc.collect()
        gc.freeze()
        imported = len(sys.modules)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny.make_tokenizer()


@pytest.fixture(scope="session")
def teacher():
    return tiny.make_model(1, layers=3)


@pytest.fixture
def student():
    return tiny.make_model(2)


class Notes:
    """A Reporter that keeps what it is told."""

    def __init__(self):
        self.stages: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def stage(self, name, what):
        self.stages.append((name, what))

    def start(self, label, total, unit):
        self.notes.append(label)

    def advance(self, done, tokens=0):
        pass

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def notes():
    return Notes()
