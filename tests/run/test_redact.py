"""Secrets never reach the disk; what only looks like one stays readable."""

from __future__ import annotations

import time
from typing import Any

import pytest
from sample_run import Write

from rnndiag.run.run import open_run
from rnndiag.store.redact import REDACTED, is_secret_name, redact

SECRET = "hunter2hunter2hunter2"


@pytest.mark.parametrize(
    "name",
    [
        "password", "--api-key", "apiKey", "API_KEY", "wandb_api_key", "hf_token", "DB_PASSWORD", "clientSecret",
        "private-key", "aws_secret_access_key", "AUTHORIZATION", "wandb-key",
    ],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["tokens", "tokenizer", "max_tokens", "key", "keys", "author", "monkey", "hidden_size", "passes"]
)  # fmt: skip
def test_names_of_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "given",
    [
        {"password": SECRET},
        {"a": [{"b": {"api_key": SECRET}}]},
        ["train.py", "--api-key", SECRET],
        ["train.py", f"--api-key={SECRET}"],
        f"python train.py --token {SECRET} --lr 0.1",
        f"WANDB_API_KEY={SECRET} python train.py",
        f"python train.py --password='{SECRET} {SECRET}'",
        f"https://me:{SECRET}@host/repo.git",
        f"postgres://{SECRET}@db",
        {"env": f"Authorization: {SECRET}"},
        {"token": [SECRET]},
    ],
)
def test_secrets_are_gone(given: Any) -> None:
    found = str(redact(given))
    assert SECRET not in found
    assert REDACTED in found


@pytest.mark.parametrize(
    "secret",
    [
        "ghp_" + "a1" * 15, "hf_" + "b2" * 15, "sk-" + "c3" * 15, "AKIA" + "ABCD1234" * 2, "xoxb-1234567890-abc",
        "eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4", "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
    ],
)  # fmt: skip
def test_secrets_are_known_by_their_look(secret: str) -> None:
    assert redact({"note": f"use {secret}"}) == {"note": f"use {REDACTED}"}


@pytest.mark.parametrize(
    "given",
    [
        ["train.py", "--tokens", "512", "--token-dropout", "0.1"],
        {
            "max_tokens": 512,
            "tokenizer": "bpe",
            "token": None,
            "secret": True,
            "nested": {"lr": 0.1},
        },
        "python train.py --hidden 128 key value https://host/path",
        {"layers": ["rnn.l0"], "password": None},
        "",
    ],
)
def test_the_rest_is_untouched(given: Any) -> None:
    assert redact(given) == given


def test_no_text_takes_long() -> None:
    begin = time.process_time()
    for text in (
        "x" * 300_000,
        "a." * 150_000,
        "eyJ" * 100_000,
        "a:" * 100_000,
        "-" * 300_000,
        "a= " * 100_000,
    ):
        redact(text)
    assert time.process_time() - begin < 5


def test_nothing_secret_in_the_files(write: Write) -> None:
    command = ["train.py", "--api-key", SECRET, "--url", f"https://u:{SECRET}@h"]
    run = write([0], provenance={"command": command, "config": {"logger": {"token": SECRET}}})
    for file in run.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()
    assert open_run(run).provenance["command"][:3] == ["train.py", "--api-key", REDACTED]
