"""Settings stop start-up with the key, the value and the remedy."""

from __future__ import annotations

import pytest

from server.settings import InvalidSettings, Settings, read_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LORALOOP_{name.upper()}", raising=False)


def test_every_setting_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORALOOP_PORT", "9001")
    monkeypatch.setenv("LORALOOP_DTYPE", "bfloat16")
    monkeypatch.setenv("LORALOOP_API_KEYS", "a, b,")
    monkeypatch.setenv("LORALOOP_MAX_RESIDENT_ADAPTERS", "3")
    settings = read_settings()
    assert (settings.port, settings.dtype, settings.max_resident_adapters) == (9001, "bfloat16", 3)
    assert settings.api_keys == ("a", "b")


def test_the_command_line_wins_and_none_means_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORALOOP_PORT", "9001")
    assert read_settings({"port": 9002, "dtype": None}).port == 9002
    assert read_settings({"port": None}).port == 9001


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("LORALOOP_PROT", "LORALOOP_PORT"),
        ("LORALOOP_ADMIN_KEY", "LORALOOP_ADMIN_KEYS"),
        ("LORALOOP_MAX_RESIDENT_ADAPTER", "LORALOOP_MAX_RESIDENT_ADAPTERS"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, key: str, near: str
) -> None:
    monkeypatch.setenv(key, "7")
    with pytest.raises(InvalidSettings) as caught:
        read_settings()
    assert key in str(caught.value)
    assert f"did you mean {near}?" in str(caught.value)


def test_an_unknown_key_that_resembles_nothing_lists_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORALOOP_XYZZY", "7")
    with pytest.raises(InvalidSettings, match="LORALOOP_MAX_QUEUE"):
        read_settings()


@pytest.mark.parametrize(
    ("key", "value"),
    [("PORT", "eighty"), ("PORT", "70000"), ("DTYPE", "float8"), ("MAX_N", "0"), ("GRACE_S", "-1")],
)
def test_a_bad_value_is_named_with_its_key(
    monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    monkeypatch.setenv(f"LORALOOP_{key}", value)
    with pytest.raises(InvalidSettings) as caught:
        read_settings()
    message = str(caught.value)
    assert message.startswith(f"Bad setting LORALOOP_{key}={value!r}:")
    assert "Leave it out for" in message


def test_a_bad_option_is_named_as_an_option() -> None:
    with pytest.raises(InvalidSettings, match="Bad setting --max-rank=0:"):
        read_settings({"max_rank": 0})
