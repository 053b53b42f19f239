"""Bearer tokens: who is let in, and that a file which became bad locks nobody out and nothing up."""

from __future__ import annotations

import hmac
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stack.base.errors import ConfigError
from stack.serve.tokens import Tokens, generate_token
from tests.clocks import Clock

FIRST, SECOND = "first-token-0123456789", "second+token/0123456789=="
TOKEN = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=16, max_size=60).filter(
    lambda text: not text.startswith("#")
)


def write(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    """Writes the file under another name and moves it into place, as an editor does."""
    aside = path.with_name("aside")
    aside.write_bytes(text if isinstance(text, bytes) else text.encode())
    aside.chmod(mode)
    return aside.replace(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens", f"# ranking, since März\n{FIRST}\n\n  {SECOND}\r\n")


def test_each_token_of_the_file_is_allowed_and_nothing_else(path: Path) -> None:
    tokens = Tokens(path)
    for header in (f"Bearer {FIRST}", f"bearer {SECOND}", f"BEARER  {FIRST} "):
        assert tokens.allows(header), header
    others = (
        None, "", "Bearer", "Bearer ", FIRST, f"Basic {FIRST}", f"Bearer {FIRST[:-1]}", f"Bearer {FIRST}x",
        f"Bearer {FIRST} {SECOND}", f"Bearer {FIRST}\n{SECOND}", "Bearer # ranking, since März", "Bearer \ud800",
        f"Bearer{FIRST}", f"Bearer\xa0{FIRST}",
    )  # fmt: skip
    for header in others:
        assert not tokens.allows(header), header


@given(known=st.lists(TOKEN, min_size=1, max_size=5), asked=st.lists(TOKEN, max_size=5))
def test_a_token_is_allowed_exactly_if_it_is_in_the_file(
    known: list[str], asked: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokens = Tokens(write(tmp_path_factory.mktemp("t") / "tokens", "\n".join(known)))
    assert [tokens.allows(f"Bearer {token}") for token in [*asked, *known]] == [
        token in known for token in [*asked, *known]
    ]


def test_every_token_is_compared_whichever_fits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a comparison whose time tells nothing: that of which token fits would be told by stopping there."""
    compared = []
    compare = hmac.compare_digest

    def counted(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    tokens = Tokens(path)
    monkeypatch.setattr(hmac, "compare_digest", counted)
    for header in (f"Bearer {FIRST}", f"Bearer {SECOND}", "Bearer nobody", f"Bearer {FIRST[:-1]}"):
        compared.clear()
        tokens.allows(header)
        assert len(compared) == 2, header
        assert {len(one) for pair in compared for one in pair} == {32}, "digests, whatever the tokens' lengths"


def test_without_a_file_everyone_is_allowed() -> None:
    assert Tokens(None).allows(None)
    assert Tokens(None).allows("Bearer whatever")


def test_a_generated_token_is_a_new_one_that_a_file_can_hold(tmp_path: Path) -> None:
    made = [generate_token() for _ in range(20)]
    assert len(set(made)) == 20
    assert {len(token) for token in made} == {43}
    tokens = Tokens(write(tmp_path / "tokens", "\n".join(made)))
    assert all(tokens.allows(f"Bearer {token}") for token in made)


BAD = {
    "group may read": (f"{FIRST}\n", 0o640, r"tokens is open to others (mode 0640): chmod 600 /"),
    "others may write": (f"{FIRST}\n", 0o602, r"tokens is open to others (mode 0602): chmod 600 /"),
    "short": (f"# good\n{FIRST}\nsecret-of-15-ch", 0o600, "line 3 of the token file"),
    "a space inside": (f"{FIRST} mine", 0o600, "line 1 of the token file"),
    "not ascii": (f"{FIRST}ö", 0o600, "at least 16 printable ASCII characters without spaces, or begin a comment"),
    "nul": (f"{FIRST}\0", 0o600, "is no token: write at least 16"),
    "only comments": ("# none\n\n", 0o600, "has no token, so nobody could ask: write one a line"),
    "empty": ("", 0o600, "has no token"),
    "huge": (b"#" * (1 << 20) + b"\n", 0o600, "has more than 1048576 bytes: is it the right one?"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_in_one_line_without_its_content(tmp_path: Path, name: str) -> None:
    text, mode, message = BAD[name]
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        Tokens(write(tmp_path / "tokens", text, mode))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert FIRST not in str(caught.value)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none cannot be read \(No such file or directory\): name a file of tokens"):
        Tokens(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"(is not a plain file|Is a directory)"):
        Tokens(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="pipe is not a plain file"):
        Tokens(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(path: Path) -> None:
    os.chown(path, 12_345, -1)
    with pytest.raises(ConfigError, match=r"belongs to user 12345, not to this one \(0\) or root: chown 0 /"):
        Tokens(path)


def test_tokens_are_exchanged_without_a_restart_looked_at_once_a_second(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    tokens = Tokens(path, clock)
    write(path, f"{SECOND}\n")
    clock.now += 0.99
    assert tokens.allows(f"Bearer {FIRST}")
    clock.now += 0.01
    assert not tokens.allows(f"Bearer {FIRST}")
    assert tokens.allows(f"Bearer {SECOND}")
    assert capsys.readouterr().out == f"{path} was changed: 1 tokens are valid now\n"
    clock.now += 1
    assert tokens.allows(f"Bearer {SECOND}")
    assert capsys.readouterr().out == ""


def test_a_file_that_became_bad_is_said_once_and_the_old_tokens_stay_valid(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    tokens = Tokens(path, clock)
    changes = {
        "line 1 of the token file": lambda: write(path, "bad-secret"),
        "has no token": lambda: write(path, ""),
        "cannot be read (No such file or directory)": path.unlink,
        "(mode 0644): chmod 600": lambda: write(path, generate_token(), 0o644),
    }
    for message, change in changes.items():
        change()
        for _ in range(3):
            clock.now += 1
            assert tokens.allows(f"Bearer {FIRST}")
        said = capsys.readouterr().out
        assert message in said
        assert said.count("\n") == 1
        assert said.endswith("; the 2 tokens read before it stay valid\n")
        assert "secret" not in said


def test_a_mode_that_is_mended_makes_the_new_tokens_valid(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    tokens = Tokens(path, clock)
    new = generate_token()
    write(path, new, 0o644)
    clock.now += 1
    assert not tokens.allows(f"Bearer {new}")
    path.chmod(0o600)
    clock.now += 1
    assert tokens.allows(f"Bearer {new}")
    assert not tokens.allows(f"Bearer {FIRST}")
    assert new not in capsys.readouterr().out
