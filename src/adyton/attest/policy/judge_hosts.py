"""Judge which machine made a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from adyton.attest.policy.hosts import KINDS, PROVIDERS, still

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adyton.attest.evidence_policy import Policy
    from adyton.attest.policy.judgement import Judgement
    from adyton.attest.report import VerifiedReport

_FACTS: Final[Mapping[str, str]] = {"chip_ids": "chip_id", "ppids": "ppid", "piids": "piid"}


def ids_of(report: VerifiedReport) -> dict[str, bytes]:
    """The ids that evidence gives its machine, by the name of their list. Hidden ones and zeros are left out."""
    found: dict[str, bytes] = {}
    for kind in KINDS:
        value = report.platform.get(_FACTS[kind])
        if isinstance(value, bytes) and any(value):
            found[kind] = value
    return found


def judge_hosts(to: Judgement, report: VerifiedReport, policy: Policy) -> None:
    """The machine is in a list, and in a provider's registry, as far as the policy asks."""
    rules = policy.hosts
    if rules is None:
        return
    ids = ids_of(report)
    if rules.has_list:
        ends = [end for kind, host, end in rules.listed() if ids.get(kind) == host.id]
        lists = sorted({kind for kind, _, _ in rules.listed()})
        good = [end for end in ends if still(end, to.now)]
        to.ends += [max(good)] if good else []
        to.track(
            "hosts",
            "host",
            bool(good),
            expected=f"a machine of the policy's {' or '.join(lists)}",
            seen=_shown(ids) + (f", whose entry ended {max(ends):%Y-%m-%d}" if ends else ""),
            remedy=_line(ids, lists),
        )
    if rules.registries:
        ppid = ids.get("ppids", b"")
        known = [answers for answers in rules.registries if ppid in answers.ppids]
        providers = sorted({answers.provider for answers in rules.registries})
        answered = [answers.until for answers in known if still(answers.until, to.now)]
        to.ends += [max(answered)] if answered else []
        to.track(
            "hosts",
            "host registry",
            bool(answered),
            expected=f"a machine of {' or '.join(providers)}",
            seen=_shown(ids) + (f", whose answer ended {max(item.until for item in known):%Y-%m-%d}" if known else ""),
            remedy="; ".join(PROVIDERS[name].format(ppid=ppid.hex() or "PPID") for name in providers)
            + "; then add the PPID to the answers in the policy's hosts.registries, with an end date",
        )


def _shown(ids: Mapping[str, bytes]) -> str:
    named = [f"{_FACTS[kind]} {raw.hex()}" for kind, raw in ids.items()]
    return ", ".join(named) or "no id of a machine (a provider's key signed, which hides it)"


def _line(ids: Mapping[str, bytes], lists: list[str]) -> str:
    kind = next((kind for kind in (*lists, *ids) if kind in ids), None)
    if kind is None:
        return "list machines by an id that the evidence shows; under a VLEK there is none"
    return (
        "find out where this machine stands; to accept it add this to the policy:"
        f' [[hosts.{kind}]] id = "{ids[kind].hex()}", until = YYYY-MM-DD, note = "where it stands"'
    )
