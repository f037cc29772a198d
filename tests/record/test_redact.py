"""What looks like a secret is hidden, and nothing else is."""

import pytest

from bench.record.redact import redacted


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://me:pass@host:5000/x", "http://***@host:5000/x"),
        ("http://me:p@ss@host/x@y", "http://***@host/x@y"),
        ("GET https://blob/x?sp=r&sig=abc%3D", "GET https://blob/x?sp=r&sig=***"),
        (
            "cannot clone https://oauth2:abc@git.example/r.git",
            "cannot clone https://***@git.example/r.git",
        ),
        ("postgresql+psycopg2://u:p%40w@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("GET /a?X-Amz-Signature=abcdef&b=1", "GET /a?X-Amz-Signature=***&b=1"),
        ("token hf_abcdefghijklmnopqrstuv is wrong", "token *** is wrong"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("ghp_0123456789abcdefghij0123", "***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc_def-g", "***"),
    ],
)
def test_a_credential_is_hidden(text: str, hidden: str) -> None:
    assert redacted(text) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "model=tiny quant=fp32 workload.new_tokens=4",
        "sqlite:////home/me/outputs/mlflow.db",
        "mail me@example.org",
        "http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=bench-latest",
        "model.tokenizer=bytes",
        "skipped: needs the package flash_attn",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_values_of_variables_that_are_named_like_secrets_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "correct horse")
    monkeypatch.setenv("MY_SERVICE_NAME", "battery staple")
    monkeypatch.setenv("OTHER_TOKEN", "short")
    monkeypatch.setenv("TOKENIZER_NAME", "smollm2-135m")
    monkeypatch.setenv("MYSQL_PWD", "a long password")
    monkeypatch.setenv("PWD", "/home/me")
    assert redacted("correct horse, battery staple, short") == "***, battery staple, short"
    assert redacted("smollm2-135m in /home/me: a long password") == "smollm2-135m in /home/me: ***"


def test_containers_are_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "0123456789")
    assert redacted({"a": ["x 0123456789", 1, None], "0123456789": ("y",)}) == {
        "a": ["x ***", 1, None],
        "***": ("y",),
    }
