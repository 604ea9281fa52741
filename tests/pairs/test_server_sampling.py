"""The server engine against real HTTP: a tiny model behind a server that answers as vLLM, transformers serve and others do, and fails as they do."""

import dataclasses
import socket

import pytest

from hubdistill.errors import HubdistillError, InputError, SamplingError
from hubdistill.pairs import server_client, server_sampling
from hubdistill.pairs.sampling import TransformersSampler
from hubdistill.pairs.server_answers import AnswerReader
from hubdistill.pairs.server_client import ask_for_model
from hubdistill.pairs.server_sampling import ServerSampler
from hubdistill.pairs.store import Question, ResponseHeader, collect, seed_for
from hubdistill.specs import SamplingSpec, ServerSpec
from tests import tiny
from tests.completions_server import CompletionsServer

STOP, VOCAB, KEY = 3, 34, "wq8-not-shown-2f61"
QUESTIONS = [Question(f"p{i:02d}", (2, 4, *(7 + (i * j) % 27 for j in range(1, 3 + i % 4)), 3, 2, 5)) for i in range(12)]
SETTINGS = SamplingSpec(max_tokens=6)
HEADER = ResponseHeader(who="teacher", purpose="round 1", model="m", commit="c", dtype="float32", vocab=VOCAB, adapter=None, template="t",
                        sampling={}, stop_ids=(STOP,), engine="server", engine_version="", seed=0)  # fmt: skip


@pytest.fixture(scope="module")
def teacher():
    return tiny.make_model(12)  # one that ends about half of its responses


def seeds(prompt_id):
    return seed_for(0, "round 1", "teacher", prompt_id)


def engine(server, tokenizer, *, vocab=VOCAB, never=(), progress=None, **spec):
    spec = {"url": server if isinstance(server, str) else server.url, "model": "org/teacher", "concurrency": 1} | spec  # one at a time: nothing of a test is left over at its end
    return ServerSampler(ServerSpec(**spec), spec["model"], AnswerReader(tokenizer, (STOP,), STOP, vocab), never, progress)


def answers(sampler, settings=SETTINGS, questions=QUESTIONS):
    return {one.prompt_id: one for batch in sampler.sample(questions, settings, seeds) for one in batch}


def by_transformers(model, settings=SETTINGS):
    return {one.prompt_id: one for batch in TransformersSampler(model, (STOP,), 0, VOCAB).sample(QUESTIONS, settings, seeds) for one in batch}


@pytest.fixture(scope="module")
def running(teacher, tokenizer):
    with CompletionsServer(teacher, tokenizer) as server:
        yield server


@pytest.fixture
def served(running):
    """Ways to behave -> a server that does; the same one for all tests, since one takes a while to stop."""

    def made(style="vllm", key=None, fail=None, pause=0.0):
        running.style, running.key, running.fail, running.pause, running.most = style, key, fail or {}, pause, 0
        running.asked.clear()
        running.said.clear()
        return running

    return made


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(server_client, "FIRST_WAIT", 0.001)


def test_ids_that_come_are_the_ones_that_the_model_sampled(served, teacher, tokenizer):
    told = []
    server = served(pause=0.03)
    found = answers(engine(server, tokenizer, concurrency=3, never=(9,), progress=lambda done, tokens: told.append((done, tokens))))
    assert found == by_transformers(teacher)  # the seeds are the prompts' own, so the transformers engine says the same
    assert server.most == 3
    assert {one.finish_reason for one in found.values()} == {"stop", "length"}, "the test needs both"
    assert [sum(column) for column in zip(*told, strict=True)] == [12, sum(len(one.response_ids) for one in found.values())]
    body = next(body for body in server.asked if body["prompt"] == list(QUESTIONS[0].prompt_ids))
    # Neutral but for the recipe: vLLM would take top_k and others from the model's own generation config.
    wanted = {"temperature": 0.8, "top_p": 0.95, "max_tokens": 6, "seed": seeds("p00"), "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
              "stop_token_ids": [STOP], "logit_bias": {"9": -100.0}}  # fmt: skip
    assert body.items() >= wanted.items()


def test_greedy_is_asked_without_a_nucleus(served, teacher, tokenizer):
    greedy = SamplingSpec(max_tokens=6, temperature=0)
    server = served()
    assert answers(engine(server, tokenizer), greedy) == by_transformers(teacher, greedy)
    assert {(body["temperature"], body["top_p"]) for body in server.asked} == {(0.0, 1.0)}


@pytest.mark.parametrize(("style", "tried"), [("ids", 1), ("serve", 3), ("text", 4)])
def test_text_that_comes_without_ids_gives_tokens_of_that_text(served, tokenizer, style, tried):
    server = served(style=style)
    found = answers(engine(server, tokenizer))
    assert len(server.asked) == len(QUESTIONS) + tried - 1, "the ways that are not understood are tried once"
    said = {tuple(tokenizer(body["prompt"])["input_ids"] if isinstance(body["prompt"], str) else body["prompt"]): one["choices"][0]
            for body, one in zip(server.asked[tried - 1 :], server.said, strict=True)}  # fmt: skip
    for question in QUESTIONS:
        one, choice = found[question.prompt_id], said[question.prompt_ids]
        ended = choice["finish_reason"] == "stop"
        assert one.finish_reason == choice["finish_reason"]
        assert tokenizer.decode(one.response_ids[:-1] if ended else one.response_ids) == choice["text"]
        assert (one.response_ids[-1:] == (STOP,)) == ended
    assert {one.finish_reason for one in found.values()} == {"stop", "length"}


def test_what_passes_is_tried_again(served, teacher, tokenizer, quick):
    server = served(fail={0: 429, 1: 503, 4: 500, 5: 502, 7: 429})
    assert answers(engine(server, tokenizer, concurrency=2)) == by_transformers(teacher)
    assert len(server.asked) == len(QUESTIONS) + 5


def test_a_server_that_keeps_failing_is_one_error_and_the_rerun_asks_for_what_is_missing(served, tokenizer, quick, tmp_path):
    def collected(folder, server, asked=None):
        return collect(folder, HEADER, QUESTIONS, lambda missing: (asked.extend(missing) if asked is not None else None) or engine(server, tokenizer).sample(missing, SETTINGS, seeds))

    server = served()
    collected(tmp_path / "whole", server)
    server = served(fail={number: 500 for number in range(5, 13)})
    with pytest.raises(SamplingError, match=r"failed 8 times in a row \(500 told to fail.*is kept"):
        collected(tmp_path / "cut", server)
    asked = []
    server = served()
    collected(tmp_path / "cut", server, asked)
    assert len(asked) == len(QUESTIONS) - 5
    assert (tmp_path / "cut" / "teacher.parquet").read_bytes() == (tmp_path / "whole" / "teacher.parquet").read_bytes()


def test_a_server_that_goes_away_in_the_middle_is_waited_for(teacher, tokenizer, quick, monkeypatch):
    monkeypatch.setattr(server_sampling, "BATCH", 4)
    with CompletionsServer(teacher, tokenizer) as server:
        batches = engine(server, tokenizer).sample(QUESTIONS, SETTINGS, seeds)
        found = next(batches)
    with pytest.raises(SamplingError, match=r"failed 8 times in a row \(Connect"):
        found += [one for batch in batches for one in batch]
    monkeypatch.setattr(server_client, "FIRST_WAIT", 0.5)
    with server:
        batches = engine(server, tokenizer).sample(QUESTIONS, SETTINGS, seeds)
        found = next(batches)
    with server:  # it is back on the same port while the rest is asked for
        found += [one for batch in batches for one in batch]
    assert {one.prompt_id: one for one in found} == by_transformers(teacher)


def test_nothing_there(tokenizer):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening: a connection is refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(SamplingError, match=r"sampling\.server\.url: nothing answers at http://127.*start the server"):
            answers(engine(url, tokenizer))


def test_a_wrong_name_a_wrong_key_and_a_wrong_address_are_the_users_to_mend(served, tokenizer, monkeypatch):
    monkeypatch.setenv("SERVER_KEY", KEY)
    server = served(key=KEY)
    assert len(answers(engine(server, tokenizer, api_key_env="SERVER_KEY"))) == len(QUESTIONS)
    cases = [
        ({"api_key_env": "SERVER_KEY", "model": "org/techer"}, "sampling.server.model: 127.0.0.1:{port} has no model 'org/techer'; write the name that it gives the teacher (it has org/teacher, org/other)"),
        ({}, "name the environment variable that holds its key in sampling.server.api_key_env"),
        ({"api_key_env": "SERVER_KEY", "url": server.url.removesuffix("/v1")}, "addresses of OpenAI-compatible servers mostly end in /v1"),
    ]
    for spec, expected in cases:
        with pytest.raises(InputError) as caught:
            ask_for_model(ServerSpec(**({"url": server.url, "model": "org/teacher"} | spec)), spec.get("model", "org/teacher"))
        assert expected.format(port=server.port) in str(caught.value)
        assert KEY not in str(caught.value)


@pytest.mark.parametrize("status", [401, 400, 500])
def test_a_key_that_a_server_repeats_is_in_no_error(served, tokenizer, monkeypatch, quick, status, caplog):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("SERVER_KEY", "another" + KEY)
    server = served(key=KEY if status == 401 else "another" + KEY, fail={-1: status})
    with pytest.raises(HubdistillError) as caught:
        answers(engine(server, tokenizer, api_key_env="SERVER_KEY"))
    assert "***" in str(caught.value)
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text


def test_a_key_that_is_not_there_or_none_is_said_without_a_request(monkeypatch):
    spec = ServerSpec(url="http://127.0.0.1:1/v1", api_key_env="SERVER_KEY")
    with pytest.raises(InputError, match="the environment variable SERVER_KEY is not set"):
        ask_for_model(spec, "m")
    monkeypatch.setenv("SERVER_KEY", "schlüssel")
    with pytest.raises(InputError, match="is no key") as caught:
        ask_for_model(spec, "m")
    assert "schl" not in str(caught.value)


@pytest.mark.parametrize("nonsense", ["<html>hello</html>", {"answer": 42}, {"choices": []}, {"choices": [{"text": None}]}, [1, 2]])
def test_answers_without_text_are_refused(served, tokenizer, nonsense):
    server = served(fail={3: nonsense})
    with pytest.raises(SamplingError, match=r"correct sampling\.server\.url"):
        answers(engine(server, tokenizer))


def said(text, reason="stop", prompt=8, **more):
    return {"choices": [{"text": text, "finish_reason": reason, **more}], "usage": {"prompt_tokens": prompt}}


@pytest.mark.parametrize("lost", [said("the \ufffd sat"), said("the cat", "content_filter"), said("the cat", token_ids=[7, 10, 3]), said("pizza", token_ids=[7, 50, 3]), said("the <|im_end|> cat")])
def test_an_answer_that_is_not_to_be_had_as_tokens_is_left_out_and_not_asked_for_again(served, tokenizer, tmp_path, lost):
    questions = [Question(f"p{i:02d}", (2, 4, 7 + i, 8, 9, 3, 2, 5)) for i in range(10)]
    server = served(fail={3: lost})
    found = collect(tmp_path, HEADER, questions, lambda missing: engine(server, tokenizer).sample(missing, SETTINGS, seeds))
    assert (found.manifest["rows"], found.manifest["unusable"]) == (10, 1)
    assert [(one.prompt_id, one.response_ids) for one in found.rows() if one.finish_reason == "unusable"] == [("p03", ())]
    collect(tmp_path, HEADER, questions, lambda missing: pytest.fail("it is finished"))


def test_a_server_with_another_vocabulary_is_refused(served, teacher, tokenizer):
    wide = teacher.config.vocab_size
    server = served()
    with pytest.raises(SamplingError, match=r"\d+ of the first \d+ answers of 127.* cannot be used"):
        answers(engine(server, tokenizer, vocab=wide // 4))


def test_a_server_that_reads_other_prompts_is_refused(served, tokenizer):
    server = served(fail={0: said("the cat", prompt=9)})
    with pytest.raises(SamplingError, match=r"reads prompt p\d\d as 9 tokens, and the teacher as"):
        answers(engine(server, tokenizer))


def test_a_context_that_is_too_short_shows_at_the_first_request(served, tokenizer):
    server = served(fail={-1: 400})
    with pytest.raises(SamplingError, match=r"of \d+ tokens: 400 told to fail.*lower prompts\.max_tokens"):
        answers(engine(server, tokenizer))
    longest = max(QUESTIONS, key=lambda question: len(question.prompt_ids))
    assert {len(body["prompt"]) for body in server.asked if isinstance(body["prompt"], list)} == {len(longest.prompt_ids)}


def test_who_stops_listening_ends_the_requests(teacher, tokenizer, monkeypatch):
    monkeypatch.setattr(server_sampling, "BATCH", 2)
    with CompletionsServer(teacher, tokenizer) as server:
        batches = engine(server, tokenizer, concurrency=3).sample(QUESTIONS, SETTINGS, seeds)
        next(batches)
        batches.close()
        assert len(server.asked) < len(QUESTIONS)


def test_another_host_is_the_same_set_and_another_engine_is_not():
    assert dataclasses.replace(HEADER, server="a:1").digest == dataclasses.replace(HEADER, server="b:2").digest == HEADER.digest
    assert dataclasses.replace(HEADER, engine="vllm").digest != HEADER.digest


def byte_level():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.train_from_iterator(["the cat sat on the mat, and then it ran", "le café\n\nnaïve"], trainers.BpeTrainer(vocab_size=320, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def marked_words():
    """As SentencePiece: `▁` stands for the blank before a word, and the first word gets one too."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(prepend_scheme="first")
    inner.train_from_iterator(["the cat sat on the mat and then it ran", "tell me : what"], trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<end>"]))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<unk>")


@pytest.mark.parametrize("text", [" the cat sat", "the cat", "\n\nthe", " café naïve", "  two  blanks ", "emoji 🙂, and more"])
def test_ids_of_a_text_give_it_back_after_the_prompt(text):
    tokenizer = byte_level()
    reader, prompt = AnswerReader(tokenizer, (0,), 0, 400), tokenizer("tell me:")["input_ids"]
    ids, _ = reader.ids_of(prompt, text)
    assert tokenizer.decode([*prompt, *ids]) == "tell me:" + text
    assert reader.ids_of(prompt, text + "\ufffd") is None


def test_words_that_are_marked_by_the_blank_before_them_keep_it():
    tokenizer = marked_words()
    reader, prompt = AnswerReader(tokenizer, (1,), 1, 200), tokenizer("tell me :")["input_ids"]
    ids, _ = reader.ids_of(prompt, " the cat")
    assert tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁")
    assert not tokenizer.convert_ids_to_tokens(ids)[0].startswith("▁▁")
    assert tokenizer.decode([*prompt, *ids]) == "tell me : the cat"
    assert reader.ids_of(prompt, " Zürich") is None  # its letters are not in the vocabulary
