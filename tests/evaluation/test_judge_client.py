"""A judge over real HTTP: asked in both orders, again where it cannot be read, never twice for the same; and what happens when it fails."""

from __future__ import annotations

import email.utils
import multiprocessing
import os
import signal
import socket
import time

import pytest

from hubdistill.errors import HubdistillError, InputError, RunDirectoryError, SamplingError
from hubdistill.evaluation.judge_client import Judge
from hubdistill.evaluation.verdicts import Case, Verdicts
from hubdistill.pairs import server_client
from hubdistill.specs import JudgeSpec
from tests.completions_server import CompletionsServer

KEY = "wq8-not-shown-2f61"
CASES = [Case(f"question {i}", "good" * (1 + i), "bad", "org/judge", 0.7, 50, 0) for i in range(10)]


def prefers_good(messages, body):
    """Names the place of the answer that has "good" in it."""
    shown = messages[1]["content"]
    return f"I compared them.\n[[{'A' if 'good' in shown.split('--- answer B ---')[0] else 'B'}]]"


@pytest.fixture(scope="module")
def running():
    with CompletionsServer(None, None, name="org/judge") as server:
        yield server


@pytest.fixture
def served(running, monkeypatch):
    """Ways to behave -> the server; the same one for all tests."""
    monkeypatch.setattr(server_client, "FIRST_WAIT", 0.001)

    def made(chat=prefers_good, fail=None, key=None, pause=0.0):
        running.chat, running.fail, running.key, running.pause, running.retry_after, running.most = chat, fail or {}, key, pause, "0", 0
        running.asked.clear()
        return running

    return made


@pytest.fixture
def judge(tmp_path, running):
    def made(url=None, progress=None, **spec):
        found = JudgeSpec(**{"url": url or running.url, "model": "org/judge", "concurrency": 1} | spec)
        return Judge(found.under("evaluate[0].judge"), progress, Verdicts(tmp_path / "verdicts.sqlite"))

    return made


def letters(found, cases=CASES):
    return "".join(found[case.key].letter or "-" for case in cases)


def swapped(case):
    return Case(case.request, case.b, case.a, case.model, case.temperature, case.max_tokens, case.seed)


def test_verdicts_come_some_at_a_time_and_follow_the_order(served, judge):
    told, server = [], served(pause=0.02)
    both = [*CASES, *map(swapped, CASES)]
    found = judge(concurrency=4, progress=lambda done, tokens: told.append((done, tokens))).judge(both)
    assert letters(found, both) == "A" * 10 + "B" * 10
    assert 2 <= server.most <= 4
    assert (len(server.asked), told) == (20, [(1, 4)] * 20)
    body = next(body for body in server.asked if "question 3" in body["messages"][1]["content"])
    assert (body["temperature"], body["max_tokens"], [turn["role"] for turn in body["messages"]]) == (0.7, 50, ["system", "user"])
    assert len({body["seed"] for body in server.asked}) == 20


def test_what_is_kept_is_not_asked_again(served, judge):
    server = served()
    first = judge().judge(CASES[:4])
    again = judge(url="http://127.0.0.1:9/v1").judge(CASES[:4])  # nothing is there, and nobody asks
    assert again == first
    judge().judge(CASES[:6])
    assert len(server.asked) == 6
    assert judge().missing(CASES) == CASES[6:]
    judge().judge([CASES[6], CASES[6]])
    assert len(server.asked) == 7, "two equal cases are one"


def test_a_verdict_that_cannot_be_read_is_asked_for_once_more(served, judge):
    unsure = {"question 1": 1, "question 2": 2}  # how often it says something else

    def mumbles(messages, body):
        for name in unsure:
            if name in messages[1]["content"] and unsure[name]:
                unsure[name] -= 1
                return "Both have their points."
        return prefers_good(messages, body)

    server = served(mumbles)
    found = judge().judge(CASES[:4])
    assert letters(found, CASES[:4]) == "AA-A"
    assert [found[case.key].requests for case in CASES[:4]] == [1, 2, 2, 1]
    assert found[CASES[2].key].text == "Both have their points."
    asked = [body for body in server.asked if "question 2" in body["messages"][1]["content"]]
    assert asked[0]["seed"] != asked[1]["seed"]
    assert len(asked[1]["messages"][1]["content"]) > len(asked[0]["messages"][1]["content"])
    assert found[CASES[1].key].tokens_in == sum(len(turn["content"].split()) for body in server.asked if "question 1" in body["messages"][1]["content"] for turn in body["messages"])
    judge().judge(CASES[:4])
    assert len(server.asked) == 6, "neither is what cannot be read"


def answer(text, reason="stop", **usage):
    return {"choices": [{"message": {"content": text}, "finish_reason": reason}]} | ({"usage": usage} if usage else {})


def test_a_text_that_was_cut_is_no_verdict_and_tokens_that_are_not_told_count_as_bytes(served, judge):
    served(lambda messages, body: answer("[[A]]", "length") if "question 1" in messages[1]["content"] else answer("[[A]]"))
    found = judge().judge(CASES[:2])
    assert letters(found, CASES[:2]) == "A-"
    assert (found[CASES[0].key].tokens_in, found[CASES[0].key].tokens_out) == (CASES[0].size, 5)


def test_a_judge_that_answers_nonsense_is_one_error_and_is_not_asked_on(served, judge):
    many = [Case(f"question {i}", "a", "b", "org/judge", 0.7, 50, 0) for i in range(40)]
    server = served(lambda messages, body: "I am a small model\nand this is what I say")
    expected = r"none of the 16 answers of org/judge so far ends in a verdict \(\[\[A\]\], \[\[B\]\] or \[\[C\]\]\); the last one ends 'I am a small model and this is what I say'\. Name a larger model in evaluate\[0\]\.judge\.model"
    with pytest.raises(SamplingError, match=expected):
        judge().judge(many)
    assert len(server.asked) == 32
    with pytest.raises(SamplingError, match="none of the 16 answers"):
        judge().judge(many)
    assert len(server.asked) == 32, "a rerun knows it without asking"


def test_what_passes_is_tried_again_and_a_wait_that_is_asked_for_is_kept(served, judge):
    server = served(fail={0: 503, 1: 500, 3: 429, 4: 502})
    server.retry_after = "1"
    began = time.monotonic()
    assert letters(judge().judge(CASES[:4]), CASES[:4]) == "AAAA"
    assert len(server.asked) == 8
    assert 1.0 <= time.monotonic() - began < 3.0
    server = served(fail={0: 429})
    server.retry_after = email.utils.formatdate(time.time() + 2, usegmt=True)
    began = time.monotonic()
    judge().judge(CASES[4:5])
    assert 0.9 <= time.monotonic() - began < 3.0


def test_an_answer_that_does_not_come_in_time_is_asked_for_again_then_given_up(served, judge):
    served(fail={0: 0.4})
    assert letters(judge(timeout=0.2).judge(CASES[:1]), CASES[:1]) == "A"
    served(fail={-1: 0.4})
    with pytest.raises(SamplingError, match=r"gave no answer in 0\.1 seconds, 3 times; lower evaluate\[0\]\.judge\.concurrency, or raise evaluate\[0\]\.judge\.timeout"):
        judge(timeout=0.1).judge(CASES[1:2])


def test_a_judge_that_fails_in_the_middle_leaves_what_it_said(served, judge):
    server = served(fail={number: 500 for number in range(5, 20)})
    with pytest.raises(SamplingError, match=r"failed 8 times in a row \(500 told to fail"):
        judge().judge(CASES)
    assert len(judge().missing(CASES)) == 5
    server = served()
    assert letters(judge().judge(CASES)) == "A" * 10
    assert len(server.asked) == 5


def test_a_judge_that_is_down_is_one_error_with_key_and_address(judge):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening: a connection is refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(SamplingError, match=rf"evaluate\[0\]\.judge\.url: nothing answers at {url}"):
            judge(url=url).judge(CASES)


def _judge_until_killed(url, path):
    Judge(JudgeSpec(url=url, model="org/judge", concurrency=1), None, Verdicts(path)).judge(CASES)


def test_a_run_that_is_killed_asks_for_what_is_missing(served, judge, tmp_path):
    server = served(pause=0.1)
    process = multiprocessing.get_context("fork").Process(target=_judge_until_killed, args=(server.url, tmp_path / "verdicts.sqlite"))
    process.start()
    while len(server.asked) < 4:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    missing = judge().missing(CASES)
    assert 6 <= len(missing) <= 7, "three of four were answered, and each was kept at once"
    time.sleep(0.2)  # the server answers what the dead process asked
    server = served()
    assert letters(judge().judge(CASES)) == "A" * 10
    assert len(server.asked) == len(missing)


def test_no_more_requests_than_the_recipe_allows(served, judge):
    server = served()
    with pytest.raises(InputError, match=r"evaluate\[0\]\.judge\.max_requests: 9, and judging takes at least 10 requests \(0 of them done before\)"):
        judge(max_requests=9).judge(CASES)
    assert server.asked == []
    server = served(lambda messages, body: "hm" if "question 0" in messages[1]["content"] else prefers_good(messages, body))
    with pytest.raises(InputError, match=r"max_requests: 10 requests are used up, and verdicts are still missing"):
        judge(max_requests=10).judge(CASES)
    assert len(server.asked) == 10
    assert letters(judge(max_requests=11).judge(CASES)) == "-" + "A" * 9
    assert len(server.asked) == 11
    judge(max_requests=11).judge(CASES)
    assert len(server.asked) == 11


def test_no_more_dollars_than_the_recipe_allows(served, judge):
    server = served()
    priced = {"input_price": 1000.0, "output_price": 5000.0}

    def spent(found):
        return sum(one.tokens_in * 0.001 + one.tokens_out * 0.005 for one in found.values())

    whole = spent(judge(**priced).judge(CASES[:5]))
    with pytest.raises(InputError, match=r"evaluate\[0\]\.judge\.max_cost: \$\d\.\d{4} of \$\d\S* are spent or on their way, and the next request may cost"):
        judge(**priced, max_cost=whole + 1.5).judge(CASES)
    kept = judge().missing(CASES)
    assert 0 < len(kept) < 5, "some more were asked"
    assert spent(judge().verdicts.known(CASES)) <= whole + 1.5
    assert len(server.asked) == 10 - len(kept)


def test_a_server_is_asked_in_the_words_that_it_understands(served, judge):
    def newer(messages, body):
        return {"error": {"message": "Unsupported parameter: 'max_tokens'"}, "status": 400} if "max_tokens" in body else prefers_good(messages, body)

    def no_seed(messages, body):
        return {"detail": "unknown field seed", "status": 422} if "seed" in body else prefers_good(messages, body)

    for chat, tried in ((newer, 1), (no_seed, 2)):
        server = served(chat)
        cases = [Case(chat.__name__, str(i), "b", "org/judge", None, 50, 0) for i in range(3)]
        assert len(judge().judge(cases)) == 3
        assert len(server.asked) == 3 + tried
        assert not any("temperature" in body for body in server.asked)
    served(lambda messages, body: {"error": {"message": "no temperature, please"}, "status": 400})
    with pytest.raises(SamplingError, match=r"does not answer as a judge: 400 no temperature, please; look at the server, or at evaluate\[0\]\.judge"):
        judge().judge(CASES)


def test_a_request_that_is_refused_is_no_verdict_and_is_asked_anew_another_time(served, judge):
    def refuses_one(messages, body):
        return {"error": {"message": "too long"}, "status": 400} if "question 9" in messages[1]["content"] else prefers_good(messages, body)

    served(refuses_one)
    found = judge().judge(CASES)
    assert letters(found) == "A" * 9 + "-"
    assert found[CASES[9].key].text == "400 too long"
    assert judge().missing(CASES) == [CASES[9]]


@pytest.mark.parametrize("nonsense", ["<html>hello</html>", {"answer": 42}, {"choices": []}, {"choices": [{"text": "[[A]]"}]}, {"choices": [{"message": {"content": [1]}}]}, [1, 2]])
def test_answers_that_are_no_chat_are_refused(served, judge, nonsense):
    served(fail={1: nonsense})
    with pytest.raises(SamplingError, match=r"correct evaluate\[0\]\.judge\.url"):
        judge().judge(CASES[:3])


def test_a_wrong_name_a_wrong_key_and_no_chat_are_the_users_to_mend(served, judge, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "another" + KEY)
    served(key=KEY)
    with pytest.raises(InputError, match=r"refuses the request \(401 .*\*\*\*.*export the right key in JUDGE_KEY"):
        judge(api_key_env="JUDGE_KEY").judge(CASES)
    served()
    with pytest.raises(InputError, match=r"evaluate\[0\]\.judge\.model: \S+ has no model 'org/jude'; write the name that it gives the judge \(it has org/judge"):
        judge(model="org/jude").judge(CASES)
    served(None)
    with pytest.raises(InputError, match=r"evaluate\[0\]\.judge\.url: \S+/chat/completions is not there"):
        judge().judge(CASES)


def test_the_key_is_in_no_error_no_log_and_no_file(served, judge, monkeypatch, caplog, tmp_path):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    served(lambda messages, body: f"your key is {KEY}\n[[A]]", key=KEY)
    found = judge(api_key_env="JUDGE_KEY").judge(CASES[:3])
    assert [found[case.key].text for case in CASES[:3]] == ["your key is ***\n[[A]]"] * 3
    served(key=KEY, fail={-1: 500})
    with pytest.raises(HubdistillError, match=r"\*\*\*") as caught:
        judge(api_key_env="JUDGE_KEY").judge(CASES)
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_verdicts_that_cannot_be_kept_are_not_asked_for(served, judge, tmp_path):
    server = served()
    (tmp_path / "verdicts.sqlite").write_text("this is no database, and long enough to be told from one" * 20)
    with pytest.raises(RunDirectoryError, match=r"verdicts\.sqlite: the verdicts of judges cannot be kept there .*HUBDISTILL_CACHE"):
        judge().judge(CASES)
    assert server.asked == []
