"""config.toml: what is misspelt or cannot be meant is refused by name."""

from __future__ import annotations

import pytest

from adyton.errors import UsageError
from adyton.keystore.config import Config


def test_config_unknown_or_ill_typed_entries_are_refused() -> None:
    """A misspelt entry of config.toml is named, never ignored."""
    good = Config("alice", ("adyton-key-server",), limits={"max_active": 3})
    assert Config.parse(good.to_toml()) == good
    for wrong in ("[owner]\nnam = 'x'", "[limits]\nmax_active = 'x'", "[nosuch]\n", "x = 1", "[", "[owner]\nname='a'"):
        with pytest.raises(UsageError):
            Config.parse(wrong)


@pytest.mark.parametrize(
    ("entry", "check"),
    [
        ("[limits]\nmax_active = -1", "limits.max_active"),
        ("[limits]\nrequest_timeout_s = 0", "limits.request_timeout_s"),
        ("[limits]\nmax_connections = 1000001", "limits.max_connections"),
        ("[master]\nkind = 'passphrase'\nsalt = 'no hex'", "master.salt"),
        ("[master]\nkind = 'passphrase'\nsalt = 'abcd'", "master.salt"),
        ("[master]\nkind = 'passphrase'", "master.salt"),
        ("[master]\nkind = 'command'\ncommand = ['cat', 7]", "master.command"),
    ],
)
def test_config_value_that_cannot_be_meant_is_refused(entry: str, check: str) -> None:
    """A bound of nothing, or a salt that is none, is refused by name, with what is expected."""
    names = "[owner]\nname = 'a'\n[server]\nnames = ['x']\n"
    Config.parse(names)
    with pytest.raises(UsageError) as caught:
        Config.parse(f"{names}{entry}\n")
    assert caught.value.check == check
    assert caught.value.expected
    with pytest.raises(UsageError, match=r"server\.names"):
        Config.parse("[owner]\nname = 'a'\n[server]\nnames = [1]\n")
