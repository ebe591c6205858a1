"""Sampling with vLLM: servers of our own, or any that run already.

One ``vllm serve`` process a replica is started, watched and stopped here,
and spoken to through its OpenAI-compatible API. With ``engine.url`` servers
that others run are used instead, and neither started nor stopped.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.base import LabError, Recipe
from helpers.models import find_base, fit_recipe, load_tokenizer, resolve_dtype
from helpers.planner import find_gpus
from helpers.sampling.openai_client import (
    list_models,
    normalise_url,
    read_version,
)
from helpers.sampling.placement import (
    ADAPTER_NAME,
    MODEL_NAME,
    Placement,
    build_arguments,
    build_environment,
    find_command,
    place_replicas,
    read_model_shape,
)
from helpers.sampling.served_models import choose_model
from helpers.sampling.server_process import ServerProcess
from helpers.sampling.vllm_engine import VllmEngine


def open_vllm(
    recipe: Recipe,
    path: str | Path | None = None,
    *,
    adapter: str | Path | None = None,
    log_dir: str | Path | None = None,
) -> VllmEngine:
    """An engine over vLLM servers, ready to sample.

    Args:
        recipe: its ``engine`` section; ``url`` means servers of others.
        path: a model folder or hub id; None for the recipe's base model.
        adapter: a LoRA folder, served unmerged.
        log_dir: where the servers' output goes (default: a new temporary
            folder, named when they start).

    Raises:
        LabError: no vLLM or no server, a setting that cannot work, or a
            server that died before it was ready, with its last lines.
    """
    if recipe.engine.url:
        return _join_servers(recipe, path, adapter)
    recipe = resolve_dtype(fit_recipe(recipe, path))
    command = find_command(recipe)
    path, revision = _locate(recipe, path)
    shape = read_model_shape(path, revision)
    placement = place_replicas(recipe, shape, find_gpus(recipe))
    tokenizer = load_tokenizer(path, revision)
    stop_ids = find_stop_ids(path, revision, tokenizer)
    words = build_arguments(
        recipe, path, placement, adapter=adapter, revision=revision
    )
    folder = Path(log_dir or tempfile.mkdtemp(prefix="vllm-log-"))
    processes = [
        ServerProcess(
            lambda port: [command, "serve", *words, "--port", str(port)],
            env=build_environment(recipe, shape, placement, index),
            log=folder / f"vllm-{index}.log",
            name=f"vLLM server {index}",
            startup_timeout_s=recipe.engine.startup_timeout_s,
        )
        for index in range(placement.replicas)
    ]
    engine = VllmEngine(
        tokenizer,
        max_concurrency=recipe.engine.max_concurrency,
        max_model_len=placement.max_model_len,
        processes=processes,
        devices=[name for names in placement.devices for name in names],
    )
    try:
        engine.start_servers(path)
        model = ADAPTER_NAME if adapter is not None else MODEL_NAME
        for process in processes:
            engine.add_server(
                f"{process.url}/v1", model, recipe, stop_ids, process
            )
    except BaseException:
        engine.close()
        raise
    engine.settings = _describe_own(recipe, placement, processes)
    return engine


def _locate(
    recipe: Recipe, path: str | Path | None
) -> tuple[Path, str | None]:
    """The model's folder, or its hub id and its revision on the hub."""
    base = find_base(recipe)
    path = base if path is None else Path(path)
    if path.is_dir():
        return path.resolve(), None
    # A revision names a commit of the base on the hub, of nothing else.
    return path, recipe.model.revision if path == base else None


def find_stop_ids(
    path: Path, revision: str | None, tokenizer: Any
) -> list[int]:
    """All token ids that end a response, without loading the weights."""
    from transformers import GenerationConfig

    from helpers.sampling.decoding import find_end_ids

    settings = None
    with contextlib.suppress(OSError, ValueError):
        settings = GenerationConfig.from_pretrained(
            path.as_posix(), revision=revision
        )
    return find_end_ids(settings, tokenizer)


def _describe_own(
    recipe: Recipe, placement: Placement, processes: Sequence[ServerProcess]
) -> dict[str, Any]:
    return {
        "name": "vllm",
        "version": read_version(
            f"{processes[0].url}/v1", through_proxies=False
        ),
        "replicas": placement.replicas,
        "tensor_parallel_size": placement.tensor_parallel_size,
        "dtype": recipe.model.dtype,
        "max_model_len": placement.max_model_len,
        "url": None,
    }


def _join_servers(
    recipe: Recipe,
    path: str | Path | None,
    adapter: str | Path | None,
) -> VllmEngine:
    """An engine over servers that run already."""
    path, revision = _locate(recipe, path)
    urls = [
        normalise_url(u) for u in recipe.engine.url.split(",") if u.strip()
    ]
    chosen = []
    for url in urls:
        cards = list_models(url, through_proxies=True)
        chosen.append(choose_model(cards, url, recipe, path, adapter))
    lengths = [length for _, length in chosen if length]
    wanted = recipe.engine.max_model_len
    if wanted and lengths and min(lengths) < wanted:
        raise LabError(
            f"engine.max_model_len={wanted}, but {recipe.engine.url} serves "
            f"sequences of {min(lengths)} tokens.",
            fix=f"set engine.max_model_len to {min(lengths)}, or start the "
            "server with a larger --max-model-len",
        )
    tokenizer = load_tokenizer(path, revision)
    stop_ids = find_stop_ids(path, revision, tokenizer)
    engine = VllmEngine(
        tokenizer,
        max_concurrency=recipe.engine.max_concurrency,
        max_model_len=wanted or min(lengths, default=None),
    )
    for url, (name, _) in zip(urls, chosen, strict=True):
        engine.add_server(url, name, recipe, stop_ids)
    engine.settings = {
        "name": "vllm",
        "version": read_version(urls[0], through_proxies=True),
        "replicas": len(urls),
        "tensor_parallel_size": None,
        "dtype": None,
        "max_model_len": engine.max_model_len,
        "url": ",".join(urls),
    }
    return engine
