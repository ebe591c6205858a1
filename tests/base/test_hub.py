"""Whether the hub is there is known at once, and told to the libraries."""

from __future__ import annotations

import socket

import pytest
from huggingface_hub import constants

from helpers.base import LabError, hub
from helpers.problems import load_source


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    hub.can_reach.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in hub.PROXIES:
        monkeypatch.delenv(name, raising=False)
    yield
    hub.can_reach.cache_clear()


def test_a_port_that_answers_and_one_that_does_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert hub.can_reach(address)
    hub.can_reach.cache_clear()
    assert not hub.can_reach(address)


def test_it_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(
        socket, "create_connection", lambda *a: asked.append(a) or 1 / 0
    )
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            hub.can_reach("https://hub.invalid")
    monkeypatch.undo()
    assert not hub.can_reach("https://hub.invalid")
    assert not hub.can_reach("https://hub.invalid")
    assert hub.can_reach.cache_info().hits == 1


def test_behind_a_proxy_it_is_taken_for_granted(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert hub.can_reach("https://hub.invalid")


def test_without_a_hub_the_message_comes_without_waiting(
    monkeypatch, tmp_path
):
    """The client would try six times; offline it does not try at all."""
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv("MATHSLM_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(
        "httpx2.Client.send", lambda *a, **k: pytest.fail("asked the hub")
    )
    with pytest.raises(LabError, match="cannot be loaded"):
        load_source("numina-tir", 1)
    assert constants.HF_HUB_OFFLINE
