"""From an answer to a program to its outcome, with EvalPlus's own prompt and sanitiser."""

from __future__ import annotations

import pytest

from hubdistill.errors import InputError, SandboxError
from hubdistill.tasks import code
from hubdistill.tasks.sandbox import Limits, Sandbox

pytest.importorskip("evalplus", reason=f"EvalPlus is not installed: {code.INSTALL}")

HUMANEVAL = {
    "prompt": 'from typing import List\n\n\ndef shift(s: str) -> str:\n    """Helper."""\n    return s[1:] + s[:1]\n\n\ndef total(numbers: List[int]) -> int:\n    """ Add them up.\n    >>> total([1, 2])\n    3\n    """\n',
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert shift('ab') == 'ba'\n",
    "entry_point": "total",
}
MBPP = {"prompt": "Write a function to double a number.", "tests": ["assert set([twice(2)]) == set([4])", "assert twice(math.floor(1.5)) == 2"], "setup": "import math"}
RIGHT = "def total(numbers: List[int]) -> int:\n    return sum(numbers)"


@pytest.fixture(scope="module")
def box():
    try:
        return Sandbox.opened(Limits(cpu=1, wall=20))
    except SandboxError as problem:
        pytest.skip(f"this machine isolates no programs: {problem}")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (f"{RIGHT}\n```\nThis function adds them up.", "passed"),
        (f"import os\n{RIGHT}\nprint(total([1]))\nwhile True: pass", "passed"),  # the sanitiser leaves what the function needs
        (RIGHT.replace("sum", "max"), "failed"),
        ("I cannot do that.", "failed"),
        ("", "failed"),
        ("def total(numbers):\n    import os\n    os._exit(0)\n    return 3", "failed"),
        ("def total(numbers):\n    exit()\n    return 3", "failed"),
        ("def total(numbers):\n    while True:\n        pass\n    return 3", "timed out"),
        ("def total(numbers):\n    open('/etc/passwd').read()\n    return 3", "refused"),
    ],
)
def test_a_humaneval_answer_comes_to_its_outcome(box, answer, kind):
    solved = code.solution("humaneval", HUMANEVAL, answer, chat=True)
    assert box.run(code.program("humaneval", HUMANEVAL, solved)).kind == kind


def test_mbpp_has_its_entry_point_from_its_test_and_its_setup_first(box):
    assert code.entry_point("mbpp", MBPP) == "twice"
    solved = code.solution("mbpp", MBPP, "def half(x):\n    return x / 2\ndef twice(x):\n    return 2 * x\n```\n", chat=True)
    assert solved == "def twice(x):\n    return 2 * x"
    assert box.run(code.program("mbpp", MBPP, solved)).kind == "passed"
    assert box.run(code.program("mbpp", MBPP, solved.replace("2", "3"))).kind == "failed"
    plus = MBPP | {"test": "def check(candidate):\n    assert candidate(5) == 10\n", "entry_point": "twice"}
    assert box.run(code.program("mbpp", plus, solved)).kind == "passed"
    with pytest.raises(InputError, match="no Python"):
        code.entry_point("mbpp", {"tests": ["assert (:"]})


def test_the_prompt_is_that_of_evalplus(tokenizer):
    from evalplus.codegen import run_codegen

    words = run_codegen.__code__.co_consts
    assert {code.INSTRUCTION, code.RESPONSE} <= set(words)  # as the library has them
    tokenizer.chat_template, before = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}", tokenizer.chat_template
    try:
        shown = code.prompt_text("mbpp", MBPP, tokenizer)
    finally:
        tokenizer.chat_template = before
    assert shown == f'<user>{code.INSTRUCTION}\n```\n"""\n{MBPP["prompt"]}\n{MBPP["tests"][0]}\n"""\n```\n<assistant>{code.RESPONSE}\n```python\n'
    assert code.FENCE in code.stops("mbpp", chat=True)
    assert "\nassert" in code.stops("mbpp", chat=False)


def test_without_a_template_the_question_is_completed(box):
    solved = code.solution("humaneval", HUMANEVAL, "    return sum(numbers)\n\ndef other():\n    return 1", chat=False)
    assert box.run(code.program("humaneval", HUMANEVAL, solved)).kind == "passed"
