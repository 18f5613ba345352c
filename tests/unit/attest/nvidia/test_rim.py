"""RIMs: the one form of signature, and the values from the digested bytes alone."""

from __future__ import annotations

import re

import pytest

from adyton.attest.nvidia.rim import parse_rim
from adyton.errors import BadChain, Error, MalformedQuote
from adyton.sim.gpu import DRIVER, DRIVER_INDEXES, measurement
from tests.support.gpu_world import vendor


@pytest.fixture(scope="module")
def good() -> str:
    """A good RIM."""
    return vendor().rim("HOPPER", DRIVER, DRIVER_INDEXES).decode()


def _refused(text: str, match: str, error: type[Error] = MalformedQuote) -> None:
    with pytest.raises(error) as caught:
        parse_rim(text.encode())
    assert re.search(match, f"{caught.value.message}: {caught.value.expected}")


def test_good_rim_has_its_active_values(good: str) -> None:
    """Only active indexes, with all alternatives."""
    rim = parse_rim(good.encode())
    assert (rim.version, rim.product) == (DRIVER, "GH100")
    assert set(rim.golden) == set(DRIVER_INDEXES)
    assert rim.golden[14] == (measurement(14), measurement(14, alternative=1))


def _signature(text: str) -> str:
    return text[text.index("<d:Signature ") : text.index("</d:Signature>") + len("</d:Signature>")]


def _unsigned(text: str) -> str:
    return text.replace(_signature(text), "")


def test_altered_content_is_refused(good: str) -> None:
    """One digit of a digest."""
    digit = measurement(14).hex()
    _refused(good.replace(digit, digit[:-1] + ("0" if digit[-1] != "0" else "1"), 1), "digest", BadChain)


def test_altered_signature_is_refused(good: str) -> None:
    """Another RIM's signature value, over another digest."""
    other = vendor().rim("HOPPER", "1.2", DRIVER_INDEXES).decode()

    def value(text: str) -> str:
        return text[text.index("<d:SignatureValue>") : text.index("</d:SignatureValue>")]

    _refused(good.replace(value(good), value(other)), "its signature is wrong", BadChain)


@pytest.mark.parametrize("place", ["twice", "inside", "none", "wrapped", "other namespace"])
def test_there_is_exactly_one_signature_as_a_child_of_the_root(good: str, place: str) -> None:
    """Signature wrapping in its known forms."""
    signature, bare = _signature(good), _unsigned(good)
    if place == "twice":
        text = good.replace(signature, signature + signature)
    elif place == "inside":
        text = bare.replace("</s:Payload>", signature + "</s:Payload>")
    elif place == "none":
        text = bare
    elif place == "wrapped":
        text = f"<Evil>{good}</Evil>"
    else:
        text = good.replace(signature, signature + '<x:Signature xmlns:x="urn:x"/>')
    _refused(text, "one Signature|its signature|its Payload")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('URI=""', 'URI="#x"'),
        ('<d:Reference URI="">', "<d:Reference>"),
        ('<d:Reference URI="">', '<d:Reference URI="" Id="x">'),
        ("xml-c14n11", "REC-xml-c14n-20010315"),
        ("enveloped-signature", "base64"),
        ("ecdsa-sha384", "ecdsa-sha1"),
        ("xmldsig-more#sha384", "xmldsig-more#sha256"),
        ("<d:Transforms>", '<d:Transforms><d:Transform Algorithm="http://www.w3.org/TR/1999/REC-xslt-19991116"/>'),
        ("<d:SignedInfo>", '<d:SignedInfo Id="a">'),
        ("<d:KeyInfo>", "<d:KeyInfo><d:KeyName>x</d:KeyName>"),
        ("<d:X509Data>", "<d:X509Data><d:X509CRL>AA==</d:X509CRL>"),
        ("</d:KeyInfo>", "</d:KeyInfo><d:Object/>"),
        ("</d:SignedInfo>", "</d:SignedInfo>text"),
        ("<d:SignatureValue>", "<d:SignatureValue>*"),
    ],
)
def test_signature_has_one_form(good: str, old: str, new: str) -> None:
    """No other transform, algorithm, reference, key source or object."""
    assert old in good
    _refused(good.replace(old, new), "its signature|parse|text between")


def test_values_outside_the_digested_bytes_do_not_count(good: str) -> None:
    """A payload inside the signature is not in the digest, and the signature has no place for it."""
    payload = '<s:Payload><s:Resource type="Measurement"/></s:Payload>'
    _refused(good.replace("</d:Signature>", payload + "</d:Signature>"), "its signature")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("<s:Payload>", "<s:Payload><s:Payload></s:Payload>", "its Payload"),
        ("</s:Payload>", "<s:Directory/></s:Payload>", "its Payload"),
        ("<s:Meta ", '<s:Meta x="1"/><s:Meta ', "its Meta"),
        ('index="14"', 'index="15"', "a Resource"),
        ('index="14"', 'index="64"', "a Resource"),
        ('index="14"', 'index="014"', "a Resource"),
        ('active="True"', 'active="true"', "a Resource"),
        ('alternatives="2"', 'alternatives="3"', "Hash0 to Hash2"),
        ('alternatives="2"', 'alternatives="1"', "Hash0 to Hash0"),
        ('alternatives="1"', 'alternatives="0"', "a Resource"),
        ('size="48"', 'size="32"', "a Resource"),
        ('type="Measurement"', 'type="Other"', "a Resource"),
        ("h:Hash0=", "Hash0=", "Hash0"),
        ('active="True"', 'active="False"', "at least one active"),
        (f'colloquialVersion="{DRIVER}"', 'colloquialVersion=""', "colloquialVersion"),
        (f'colloquialVersion="{DRIVER}"', "", "colloquialVersion"),
        ("SoftwareIdentity", "OtherIdentity", "its root"),
    ],
)
def test_signed_content_is_read_strictly(good: str, old: str, new: str, match: str) -> None:
    """Also under a good signature."""
    text = _unsigned(good)
    assert old in text
    many = old in ('active="True"', "SoftwareIdentity", 'alternatives="2"', 'alternatives="1"')
    text = text.replace(old, new) if many else text.replace(old, new, 1)
    _refused(vendor().sign_rim(text).decode(), match)
