"""An OpenAI-compatible server on this machine, for tests: a real model answers over real HTTP, in one of the ways that servers do.

    with CompletionsServer(model, tokenizer) as server: ...    # server.url, server.asked (bodies), server.said (answers)

`style`: "vllm" takes token ids and its own keys, and gives ids back; "ids" takes ids and ignores keys that it does not
know; "serve" is as `transformers serve`, which takes text and refuses keys that it does not know; "text" takes text
and no generation config. `fail` maps the number of a completion request (from 0) to a status, or to a body that is
answered as it is; a float is seconds to wait before the answer. `/chat/completions` is answered by `chat`: messages and
body -> the text, or a whole answer as a dict; its requests are among `asked` and `fail` as well.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from hubdistill.pairs.choice import SeededChoice

OPENAI = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "n", "stop"}
known: dict[tuple[float, ...], list[int]] = {}  # what was generated already: many tests ask the same of the same model


class CompletionsServer:
    def __init__(self, model, tokenizer, *, style: str = "vllm", key: str | None = None, name: str = "org/teacher", fail: dict[int, Any] | None = None):
        self.model, self.tokenizer, self.style, self.key, self.name = model, tokenizer, style, key, name
        self.fail = fail or {}
        self.asked: list[dict[str, Any]] = []
        self.said: list[dict[str, Any]] = []
        self.chat: Callable[[list[dict[str, str]], dict[str, Any]], str | dict[str, Any]] | None = None
        self.retry_after = "0"
        self.pause = 0.0  # seconds before each completion
        self.most = 0  # requests at once
        self._at_once, self._lock = 0, threading.Lock()

    def __enter__(self) -> CompletionsServer:
        self._socket = socket.socket(proto=socket.IPPROTO_TCP)  # named, or asyncio would not switch delays off
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", getattr(self, "port", 0)))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._server = uvicorn.Server(uvicorn.Config(self._app(), log_level="error", lifespan="off", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        def models(request: Request) -> Response:
            return self._refusal(request) or JSONResponse({"object": "list", "data": [{"id": self.name}, {"id": "org/other"}]})

        @app.post("/v1/completions")
        def completions(request: Request, body: dict[str, Any]) -> Response:
            return answered(request, body, self._completion)

        @app.post("/v1/chat/completions")
        def chats(request: Request, body: dict[str, Any]) -> Response:
            return answered(request, body, self._chat)

        def answered(request: Request, body: dict[str, Any], answer: Callable[[dict[str, Any]], Response]) -> Response:
            with self._lock:
                number = len(self.asked)
                self.asked.append(body)
                self._at_once += 1
                self.most = max(self.most, self._at_once)
            try:
                time.sleep(self.pause)
                return self._refusal(request) or self._failure(number) or answer(body)
            finally:
                with self._lock:
                    self._at_once -= 1

        return app

    def _refusal(self, request: Request) -> Response | None:
        given = request.headers.get("authorization", "")
        if self.key and given != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": f"Incorrect API key provided: {given.removeprefix('Bearer ')}."}}, 401)
        return None

    def _failure(self, number: int) -> Response | None:
        how = self.fail.get(number, self.fail.get(-1))
        if how is None:
            return None
        if isinstance(how, float):
            return time.sleep(how)  # type: ignore[func-returns-value]
        if isinstance(how, int):
            return JSONResponse({"error": {"message": f"told to fail, key {self.key}"}}, how, headers={"retry-after": self.retry_after} if how == 429 else None)
        return PlainTextResponse(how) if isinstance(how, str) else JSONResponse(how)

    def _completion(self, body: dict[str, Any]) -> Response:
        if body["model"] != self.name:
            return JSONResponse({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
        taken = OPENAI | ({"generation_config"} if self.style == "serve" else set())
        if self.style in ("serve", "text") and (unknown := set(body) - taken):
            return JSONResponse({"detail": f"Unexpected fields in the request: {unknown}"}, 422)
        if self.style in ("serve", "text") and not isinstance(body["prompt"], str):
            return JSONResponse({"detail": "prompt must be a string."}, 400)
        answer = self._answer(body)
        self.said.append(answer)
        return JSONResponse(answer)

    def _chat(self, body: dict[str, Any]) -> Response:
        if self.chat is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        if body["model"] != self.name:
            return JSONResponse({"error": {"message": f"The model `{body['model']}` does not exist."}}, 404)
        said = self.chat(body["messages"], body)
        if isinstance(said, dict):
            return JSONResponse(said, said.pop("status", 200))
        read, written = sum(len(turn["content"].split()) for turn in body["messages"]), len(said.split())
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return JSONResponse({"id": "chat-1", "object": "chat.completion", "model": self.name, "choices": [choice], "usage": {"prompt_tokens": read, "completion_tokens": written}})

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"] if isinstance(body["prompt"], list) else self.tokenizer(body["prompt"])["input_ids"]
        config = json.loads(body.get("generation_config", "{}"))
        stops = body["stop_token_ids"] if self.style == "vllm" else config.get("eos_token_id", [self.tokenizer.eos_token_id])
        asked = (id(self.model), *prompt, body["seed"], body["temperature"], body["top_p"], body["max_tokens"], *stops)
        with self._lock:
            ids = known[asked] = known.get(asked) or self._generate(prompt, body, stops)
        stopped = ids[-1] in stops
        text = self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=not (self.style == "vllm" and body.get("skip_special_tokens") is False))
        choice = {"index": 0, "text": text, "finish_reason": "stop" if stopped else "length"}
        if self.style == "vllm" and body.get("return_token_ids"):
            choice |= {"token_ids": ids, "prompt_token_ids": prompt}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids), "total_tokens": len(prompt) + len(ids)}
        return {"id": "cmpl-1", "object": "text_completion", "model": self.name, "choices": [choice], "usage": usage}

    @torch.inference_mode()
    def _generate(self, prompt: list[int], body: dict[str, Any], stops: list[int]) -> list[int]:
        steps: list[Any] = []
        if body["temperature"] > 0:
            steps = [TemperatureLogitsWarper(body["temperature"]), SeededChoice([body["seed"]], body["top_p"], body["max_tokens"], torch.device("cpu"))]
        found = self.model.generate(input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=body["max_tokens"], do_sample=False, eos_token_id=stops,
                                    pad_token_id=0, logits_processor=LogitsProcessorList(steps))  # fmt: skip
        return found[0, len(prompt) :].tolist()
