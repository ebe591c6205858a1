"""One server with an OpenAI-compatible API: ask it, and understand it.

Prompts go to ``/v1/completions`` as text with ``add_special_tokens`` off:
the chat template has been applied here, for every engine the same way.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from openai import (
    DEFAULT_CONNECTION_LIMITS,
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    DefaultAsyncHttpxClient,
    Timeout,
)

from helpers.base import LabError
from helpers.sampling.protocol import SampledText, SampleRequest

KEY_VARIABLE = "VLLM_API_KEY"  # vLLM's own name for it
CONNECT_SECONDS = 10.0
# An idle connection is closed before the server does (vLLM: after 5 s), or
# a request might be sent into a closing one.
KEEP_SECONDS = 2.0
# Asked too early, too often or too late: the same request may do well later.
PASSING = {408, 409, 425, 429}
LENGTH = re.compile(
    r"maximum context length|max_model_len|maximum model length"
    r"|context length|longer than the maximum",
    re.IGNORECASE,
)
# What a checkpoint's generation_config could otherwise mix in.
NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


class Trouble(Exception):
    """The request failed for a reason that may pass; ``kind`` in words."""

    def __init__(self, kind: str, detail: str = ""):
        self.kind, self.detail = kind, detail
        super().__init__(f"{kind}: {detail}" if detail else kind)


class TooLong(Exception):
    """Prompt and cap do not fit the server's context."""


class ServerClient:
    """Talks to one server; for one event loop.

    Args:
        url: its base, with ``/v1``.
        model: the name it serves our model under.
        stop_ids: token ids that end a response.
        timeout_s: how long one answer may take.
        connections: most requests at once.
        through_proxies: whether proxy variables of the environment count.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        stop_ids: Sequence[int] = (),
        timeout_s: float = 600.0,
        connections: int = 256,
        through_proxies: bool = False,
    ):
        self.url, self.model, self.stop_ids = url, model, list(stop_ids)
        limits = type(DEFAULT_CONNECTION_LIMITS)(
            max_connections=connections + 8,
            max_keepalive_connections=connections + 8,
            keepalive_expiry=KEEP_SECONDS,
        )
        timeout = Timeout(timeout_s, connect=min(timeout_s, CONNECT_SECONDS))
        self._client = AsyncOpenAI(
            base_url=url,
            api_key=read_key(),
            max_retries=0,  # counted, explained and repeated by the caller
            timeout=timeout,
            http_client=DefaultAsyncHttpxClient(
                limits=limits, timeout=timeout, trust_env=through_proxies
            ),
        )
        self._compared = False

    async def complete(
        self, request: SampleRequest, prompt_ids: Sequence[int]
    ) -> SampledText:
        """One response.

        Args:
            prompt_ids: what our tokenizer makes of the prompt; compared once
                with what the server's makes of it, where the server tells.

        Raises:
            Trouble: worth another try.
            TooLong: the server says that it does not fit.
            LabError: the server refuses it for another reason, or reads
                other tokens.
        """
        compare = not self._compared
        try:
            reply = await self._client.completions.create(
                **self._make_body(request, compare)
            )
        except APIStatusError as error:
            raise self._explain_status(error) from None
        except APITimeoutError:
            raise Trouble("no answer in time") from None
        except APIConnectionError as error:
            cause = error.__cause__ or error
            raise Trouble("connection lost", repr(cause)) from None
        except (ValueError, APIResponseValidationError) as error:
            raise Trouble("unreadable answer", str(error)) from None
        text = read_reply(reply, request)
        if compare:
            self._compare_ids(reply, prompt_ids)
        return text

    def _make_body(
        self, request: SampleRequest, compare: bool
    ) -> dict[str, Any]:
        extra = NEUTRAL | {
            "add_special_tokens": False,
            "skip_special_tokens": True,
            "stop_token_ids": self.stop_ids,
            "return_token_ids": compare,
        }
        body = {
            "model": self.model,
            "prompt": request.prompt,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p if request.temperature > 0 else 1.0,
            "logprobs": 0,  # of the chosen tokens alone
            "extra_body": extra,
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if request.stop:
            body["stop"] = list(request.stop)
        return body

    def _explain_status(self, error: APIStatusError) -> Exception:
        code, said = error.status_code, str(error.message)
        if code >= 500 or code in PASSING:
            return Trouble(f"HTTP status {code}", said)
        if code in (400, 413, 422) and LENGTH.search(said):
            return TooLong(said)
        if code in (401, 403):
            return LabError(
                f"{self.url} refuses us: {said}",
                fix=f"set the variable {KEY_VARIABLE} to the server's key",
            )
        return LabError(
            f"{self.url} refuses a request with HTTP status {code}: {said}",
            why="it would refuse all the others as well",
            fix="check that it is vLLM, and that it serves this model",
        )

    def _compare_ids(self, reply: Any, prompt_ids: Sequence[int]) -> None:
        theirs = getattr(reply.choices[0], "prompt_token_ids", None)
        if theirs is not None and list(theirs) != list(prompt_ids):
            raise LabError(
                f"{self.url} reads a prompt as other tokens than we do: "
                f"{theirs[:8]}… instead of {list(prompt_ids)[:8]}….",
                why="its tokenizer is not this model's, so its samples "
                "would come from other prompts",
                fix="serve the same model folder there",
            )
        self._compared = True

    def move(self, url: str) -> None:
        """The server was started again, on another port."""
        self.url = url
        self._client.base_url = url
        self._compared = False

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


def read_reply(reply: Any, request: SampleRequest) -> SampledText:
    """The sampled text of a completion object.

    Tokens are counted with the end token, as vLLM does.

    Raises:
        Trouble: something is missing or does not fit together.
        TooLong: the server has cut it before our cap, at its own context.
    """
    try:
        (choice,) = reply.choices
        tokens = int(reply.usage.completion_tokens)
        logprobs = tuple(float(x) for x in choice.logprobs.token_logprobs)
        text, reason = choice.text, choice.finish_reason
    except (AttributeError, TypeError, ValueError) as error:
        raise Trouble("incomplete answer", str(error)) from None
    if reason not in ("stop", "length") or not isinstance(text, str):
        raise Trouble("incomplete answer", f"finish_reason {reason}")
    if tokens != len(logprobs):
        raise Trouble(
            "incomplete answer", f"{tokens} tokens, {len(logprobs)} logprobs"
        )
    if reason == "length" and tokens < request.max_new_tokens:
        raise TooLong(f"cut after {tokens} tokens")
    return SampledText(
        request=request,
        response=text,
        finish_reason=reason,
        tokens=tokens,
        mean_logprob=sum(logprobs) / tokens if tokens else 0.0,
        logprobs=logprobs if request.logprobs else None,
    )


# --- looking at a server, before there is an event loop --------------------


def normalise_url(url: str) -> str:
    """The API's base with ``/v1``, whatever of it was given.

    Raises:
        LabError: no http(s) address.
    """
    text = url.strip().rstrip("/").removesuffix("/v1")
    if not re.match(r"https?://[^/\s]+", text):
        raise LabError(
            f"engine.url: '{url.strip()}' is no address of a server.",
            fix="write it as http://host:port; several with commas between",
        )
    return f"{text}/v1"


def fetch(url: str, timeout_s: float, *, through_proxies: bool) -> Any:
    """The JSON (or empty) body of a GET; OSError or ValueError if none."""
    ours = urllib.request.ProxyHandler(None if through_proxies else {})
    request = urllib.request.Request(
        url, headers={"Authorization": f"Bearer {read_key()}"}
    )
    opener = urllib.request.build_opener(ours)
    with opener.open(request, timeout=timeout_s) as answer:
        body = answer.read()
    return json.loads(body) if body.strip() else None


def read_key() -> str:
    """The key of servers that want one."""
    return os.environ.get(KEY_VARIABLE) or "none"


def list_models(url: str, *, through_proxies: bool) -> list[dict[str, Any]]:
    """The cards of ``/v1/models``.

    Raises:
        LabError: nobody there, or no such API.
    """
    try:
        found = fetch(f"{url}/models", 30.0, through_proxies=through_proxies)
        return [dict(card, id=str(card["id"])) for card in found["data"]]
    except urllib.error.HTTPError as error:
        raise LabError(
            f"{url}/models answers with HTTP status {error.code}.",
            fix=f"set {KEY_VARIABLE} to the server's key"
            if error.code in (401, 403)
            else "check engine.url: it must be an OpenAI-compatible server",
        ) from None
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise LabError(
            f"No server answers at {url}: {error}",
            fix="check engine.url, and that the server is up; without "
            "engine.url one is started here",
        ) from None


def read_version(url: str, *, through_proxies: bool) -> str:
    """What ``/version`` says; "unknown" where there is none."""
    root = url.removesuffix("/v1")
    try:
        found = fetch(f"{root}/version", 30.0, through_proxies=through_proxies)
        return str(found["version"])
    except (OSError, TypeError, KeyError, ValueError):
        return "unknown"
