"""OLLAMA_HOST and model names are read as Ollama reads them."""

from __future__ import annotations

import pytest

from backpropagate_protocol.ollama_names import DEFAULT_HOST, check_name, full_name, parse_host


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", DEFAULT_HOST),
        ("  ", DEFAULT_HOST),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":56789", "http://127.0.0.1:56789"),
        ("1.2.3.4:56789", "http://1.2.3.4:56789"),
        ("box.local", "http://box.local:11434"),
        ("box.local:", "http://box.local:11434"),
        ("http://box.local", "http://box.local:80"),
        ("http://", "http://127.0.0.1:80"),
        ("https://box.local", "https://box.local:443"),
        ("HTTPS://box.local:8443", "https://box.local:8443"),
        ("https://box.local/ollama/", "https://box.local:443/ollama"),
        ("box.local/a/b", "http://box.local:11434/a/b"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("http://0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("[::]:8080", "http://[::1]:8080"),
        ("::1", "http://[::1]:11434"),
        ("[::1]", "http://[::1]:11434"),
        ("[fe80::1]:8080", "http://[fe80::1]:8080"),
        ('"1.2.3.4"', "http://1.2.3.4:11434"),
        (" 1.2.3.4 ", "http://1.2.3.4:11434"),
    ],
)
def test_every_form_of_a_host_is_read(text: str, url: str) -> None:
    assert parse_host(text).url == url


def test_a_url_that_was_made_is_read_as_itself() -> None:
    for text in ("", ":1", "https://h/p", "[::1]:5", "0.0.0.0"):
        assert parse_host(parse_host(text).url) == parse_host(text)


@pytest.mark.parametrize("text", ["ftp://h", "h:port", "h:65536", "h:-1", "a b", "me:pass@h", "h?x", "héé"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+") as told:
        parse_host(text)
    assert "pass" not in str(told.value)


@pytest.mark.parametrize(
    "name",
    [
        "m",
        "my-model",
        "my_model.v2",
        "my-model:q4_k_m",
        "me/my-model",
        "me/my-model:v1.0",
        "registry.example.com/me/my-model:v1",
        "localhost:5000/me/my-model",
        "M" * 80,
        "_m",
        "7b",
    ],
)
def test_names_that_ollama_takes_pass(name: str) -> None:
    assert check_name(name) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "empty"),
        ("my model", "model name"),
        ("-m", "begins with"),
        (".m", "begins with"),
        ("m:", "tag"),
        ("m:a b", "tag"),
        ("a.b/m", "namespace"),
        ("/m", "namespace"),
        ("a/b/c/d", "slashes"),
        ("M" * 81, "1 to 80"),
        ("m\n", "model name"),
        ("modèle", "model name"),
        ("a b/c/d", "registry"),
        ("m@sha256:x", "model name"),
    ],
)
def test_names_that_ollama_refuses_are_told_why(name: str, words: str) -> None:
    problem = check_name(name)
    assert problem is not None
    assert words in problem


def test_a_name_without_a_tag_is_the_latest() -> None:
    assert full_name("me/m") == "me/m:latest"
    assert full_name("localhost:5000/me/m") == "localhost:5000/me/m:latest"
    assert full_name("m:v1") == "m:v1"
