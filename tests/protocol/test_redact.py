"""No secret leaves a process; what is not a secret stays readable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backpropagate_protocol.redact import redact

# Made up, in the shape of the real ones, and put together here so that no scanner takes this file for a leak.
_BODY = "Ab3dE" + "fGh1jKlMnOpQrStUvWxYz0123456789"
_SECRETS = {
    "an OpenAI key": "sk-" + _BODY,
    "an OpenAI project key": "sk-proj-" + _BODY + "-_x",
    "an Anthropic key": "sk-ant-api03-" + _BODY,
    "a Hugging Face token": "hf_" + _BODY,
    "a GitHub token": "ghp_" + _BODY,
    "a GitHub app token": "ghs_" + _BODY,
    "a fine-grained GitHub token": "github_pat_" + _BODY,
    "a GitLab token": "glpat-" + _BODY,
    "an AWS key id": "AKIA" + "IOSFODNN7" + "EXAMPLE",
    "a JWT": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "c2lnbmF0dXJl",
}
_SETTINGS = {
    "a bearer header": ("Authorization: Bearer {}", "tok3n.with-Signs_and~more"),
    "a bearer header in lower case": ("authorization: bearer {}", "abcdefgh12345678"),
    "a basic header": ("Authorization: Basic {}", "dXNlcjpwYXNzd29yZA=="),
    "a basic header in JSON": ('{{"authorization": "Basic {}"}}', "dXNlcjpwYXNzd29yZA=="),
    "a header of a scheme of its own": ("Proxy-Authorization: ApiKey {}", "abcd1234"),
    "a private key": ("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----", "MIIEowIBAAKCAQEA\nx3+/=="),
    "a private key that is cut off": ("-----BEGIN PRIVATE KEY-----\n{}", "MIIEowIBAAKCAQEA"),
    "a URL with credentials": ("https://me:{}@example.org/x", "pa55w0rd!"),
    "a database URL": ("postgres://me:{}@db/train", "pa55w0rd"),
    "password=": ("password={}", "hunter22"),
    "a quoted password": ('{{"password": "{}"}}', "hunter22"),
    "a quoted pass phrase": ('password="{}"', "correct horse battery"),
    "a pass phrase in single quotes": ("passwd = '{}', x=1", "it has \"quotes\" in it"),
    "a pass phrase with an escaped quote": ('{{"password": "{}"}}', 'correct \\" horse'),
    "a pass phrase in JSON within JSON": ('{{"line": "{{\\"password\\": \\"{}\\"}}"}}', "correct horse battery"),
    "a pass phrase that is cut off": ('{{"secret": "{}', "correct horse battery"),
    "a pass phrase that begins like a token": ('token="hf_0123456789 {}"', "correct horse"),
    "a short quoted password": ("password='{}'", "xyz"),
    "token:": ("token: {}", "abcd1234"),
    "api_key=": ("api_key={}", "abcd1234"),
    "API-KEY:": ("API-KEY: {}", "abcd1234"),
    "a variable": ("WANDB_API_KEY={}", "0123456789abcdef"),
    "an AWS secret": ("aws_secret_access_key = {}", "wJalrXUtnFEMI/K7MDENG+bPxRfi"),
    "client_secret": ("client_secret='{}'", "s3cr3t-value"),
    "a query": ("GET /x?access_token={}&y=1", "abcd1234"),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(_SECRETS))
@pytest.mark.parametrize("around", ["{}", "error: {} was refused", '"{}",', "({})", "key={}", "\n{}\n"])
def test_a_secret_disappears_wherever_it_stands(kind: str, around: str) -> None:
    assert _SECRETS[kind] not in redact(around.format(_SECRETS[kind]))
    assert "[redacted]" in redact(around.format(_SECRETS[kind]))


@pytest.mark.parametrize("kind", sorted(_SETTINGS))
def test_the_value_of_a_secret_setting_disappears(kind: str) -> None:
    pattern, value = _SETTINGS[kind]
    assert value not in redact(f"before {pattern.format(value)} after")


def test_of_a_quoted_value_nothing_is_left_and_what_follows_stays() -> None:
    assert redact('password="my secret phrase", step=3') == 'password="[redacted]", step=3'


@pytest.mark.parametrize(
    "text",
    [
        "step 100/200 loss 1.234",
        "/home/me/output/runs/0b0e5a52-8d5f-4f43-9f0e-6a3f9a1f8f55/runner.log",
        "12345 tokens, 678 trained tokens per second",
        "eos_token: <|im_end|>"[:9],
        "https://example.org/path?q=1#part",
        "sha256 " + "0123456789abcdef" * 4,
        "the task-list is empty",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("text", ["a-" * 50_000, "a.b-c+" * 20_000])
def test_a_long_line_without_a_secret_is_read_once(text: str) -> None:
    """In quadratic time it would take minutes."""
    assert redact(text) == text


def test_a_certificate_is_no_secret() -> None:
    text = "-----BEGIN CERTIFICATE-----\nMIIEowIBAAKCAQEA\n-----END CERTIFICATE-----"
    assert redact(text) == text


def test_half_a_surrogate_pair_becomes_text_that_can_be_encoded() -> None:
    assert redact("a \ud800 b").encode() == b"a \\ud800 b"


_PIECES = st.sampled_from(
    [
        *_SECRETS.values(),
        *(p.format(v) for p, v in _SETTINGS.values()),
        " ",
        "=",
        "token",
        "password=",
        "://",
        "Bearer ",
        "'",
        "\n",
    ]
)


@given(st.lists(_PIECES | st.text(max_size=8), max_size=8).map("".join))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@given(st.text(max_size=12), st.sampled_from(sorted(_SECRETS.values())), st.text(max_size=12))
def test_no_text_around_it_saves_a_secret(before: str, secret: str, after: str) -> None:
    """A letter, digit or underscore right before would make it another word, which no secret is found inside of."""
    joint = " " if before[-1:].isalnum() or before.endswith("_") else ""
    assert secret not in redact(before + joint + secret + after)
