"""Removes secrets from the stored facts of a run: command lines, configs, addresses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REDACTED = "[redacted]"

_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
# fmt: off
_SECRET_WORDS = frozenset((
    "password", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials",
    "apikey", "authorization", "cookie",
))
_KEY_OWNERS = frozenset((
    "api", "access", "secret", "private", "auth", "account", "signing", "encryption", "wandb", "comet", "hf", "ssh",
))
# fmt: on
_SECRET_VALUES = re.compile(
    r"(?<!\w)(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|hf_\w{20,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{10,4000}\.[\w-]{10,4000}\.[\w-]{5,})"
    r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[\s\S]*"
)
_ADDRESS = re.compile(
    r"(?<![\w+.-])(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]{0,20}:/{1,2})(?:[^/\s:@]{1,200}:[^\s]{1,500}|[^/\s]{1,500})@"
)
"""User and password of an address; a password may hold `@` and `/`, and a path has made one slash of two."""

_SIGNED = re.compile(
    r"(?P<name>[?&](?:[\w-]{0,40}(?:signature|token|credential|secret|password)|sig|key|apikey|api_key|access_key"
    r"|awsaccesskeyid|googleaccessid))=[^&\s#'\"]{1,2000}",
    re.IGNORECASE,
)
"""Query parameters by which an address gives access: of signed URLs of S3, GCS and Azure, and tokens."""

# bounded lengths and anchored words, so that no text makes the search slow
_ASSIGNED = re.compile(
    r"(?<![\w.-])(?P<name>-{0,2}[A-Za-z_][\w.-]{0,80})(?P<link>=|:\s|\s+)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[^\s&\"']+)"
)


def is_secret_name(name: str) -> bool:
    """Whether a name belongs to a secret: `api_key`, `--wandb-token`, `dbPassword`; not `tokens`."""
    words = [word.lower() for word in _WORDS.findall(name)]
    if words[-1:] == ["token"] or any(word in _SECRET_WORDS for word in words):
        return True
    return any(
        word == "key" and at > 0 and words[at - 1] in _KEY_OWNERS for at, word in enumerate(words)
    )


def redact_addresses(text: str) -> str:
    """The text without credentials in addresses: `s3://key:secret@host` and signed queries."""
    if ":/" not in text:
        return text
    return _SIGNED.sub(rf"\g<name>={REDACTED}", _ADDRESS.sub(rf"\g<scheme>{REDACTED}@", text))


def _text(text: str) -> str:
    text = redact_addresses(_SECRET_VALUES.sub(REDACTED, text))

    def assigned(found: re.Match[str]) -> str:
        option = found["link"].isspace() and not found["name"].startswith("-")
        if option or not is_secret_name(found["name"]) or found["value"].startswith("--"):
            return found[0]
        return found["name"] + found["link"] + REDACTED

    return _ASSIGNED.sub(assigned, text)


def _words(words: list[Any]) -> list[Any]:
    """A command line as a list of words, redacted: the word after a secret option is the secret."""
    result: list[Any] = []
    after_option = False
    for word in words:
        if after_option and isinstance(word, str) and not word.startswith("--"):
            result.append(REDACTED)
            after_option = False
            continue
        after_option = isinstance(word, str) and word.startswith("-") and "=" not in word
        after_option = after_option and is_secret_name(word)
        result.append(redact(word))
    return result


def redact(value: Any) -> Any:
    """The value with secrets replaced: recognised by their names, or by their form where they have none."""
    if isinstance(value, Mapping):
        return {
            key: REDACTED
            if is_secret_name(str(key))
            and not isinstance(entry, (Mapping, bool, int, float, type(None)))
            else redact(entry)
            for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return _words(list(value))
    return _text(value) if isinstance(value, str) else value
