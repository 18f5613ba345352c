"""Checks of `adyton doctor` for an owner's home and key server: certificates, permissions, backup."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adyton.errors import Error
from adyton.keystore.certificate_file import read_certificate
from adyton.values import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adyton.keystore.home import Home
    from adyton.tee.machine import Machine

SOON_DAYS: Final = 30
BACKUP_DAYS: Final = 7
_CERTIFICATES: Final = (
    ("ca.crt", "make a new home: manifests pin this CA, so programs are built and approved again"),
    ("server.crt", "adyton init --renew-server, then restart adyton serve"),
    ("grant.crt", "adyton init --renew-server, then restart adyton serve"),
    ("audit.crt", "it ends with the CA: make a new home"),
)


def owner(_machine: Machine) -> Iterator[Finding]:
    """Findings about the owner's home. None without a home on this machine."""
    from adyton.keystore.home import Home, default_home

    path = default_home()
    if not (path / "config.toml").exists():
        return
    try:
        home = Home.open(path)
    except Error as error:
        yield Finding("server", "home", "warning", error.message, error.remedy)
        return
    yield Finding("server", "home", "ok", str(path))
    yield from _private(home)
    now = datetime.now(UTC)
    for name, remedy in _CERTIFICATES:
        yield _certificate(home, name, remedy, now)
    yield _backup(home, now)


def _private(home: Home) -> Iterator[Finding]:
    secret = [item for item in sorted(home.path.iterdir()) if item.suffix in (".key", ".pem", ".db", ".password")]
    bad = [item.name for item in secret if item.stat().st_mode & 0o077]
    if bad or home.path.stat().st_mode & 0o077:
        names = " ".join(str(home.path / name) for name in bad)
        remedy = f"chmod 700 {home.path}" + (f"; chmod 600 {names}" if bad else "")
        yield Finding("server", "secrets", "warning", f"open to others: {', '.join(bad) or home.path}", remedy)
    else:
        yield Finding("server", "secrets", "ok", "only the owner reads them")


def _certificate(home: Home, name: str, remedy: str, now: datetime) -> Finding:
    from cryptography import x509

    try:
        end = x509.load_pem_x509_certificate(read_certificate(home.path, name)).not_valid_after_utc
    except (Error, ValueError) as error:
        return Finding("server", name, "warning", f"cannot be read: {type(error).__name__}", remedy)
    days = (end - now).days
    if days < SOON_DAYS:
        word = "has ended" if days < 0 else "ends soon"
        return Finding("server", name, "warning", f"{word}: {end:%Y-%m-%d}", remedy)
    return Finding("server", name, "ok", f"valid until {end:%Y-%m-%d}")


def _backup(home: Home, now: datetime) -> Finding:
    """The last backup, by the audit record. It is read without opening any key."""
    import sqlalchemy as sa

    from adyton.keystore import schema
    from adyton.keystore.clock import moment
    from adyton.keystore.database import make_engine

    remedy = "adyton backup -o FILE, and keep the file and its passphrase or shares elsewhere"
    url = home.store_url()
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return Finding("server", "store", "missing", "there is none", "bring it back: adyton restore")
    try:
        engine = make_engine(url)
        try:
            with engine.connect() as connection:
                table = schema.audit.c
                query = sa.select(table.at).where(table.kind == "backup").order_by(table.seq.desc()).limit(1)
                last = connection.execute(query).scalar_one_or_none()
        finally:
            engine.dispose()
    except (sa.exc.SQLAlchemyError, Error) as error:
        return Finding("server", "store", "warning", f"cannot be read: {type(error).__name__}", "adyton restore")
    if last is None:
        return Finding("server", "backup", "warning", "never made", remedy)
    days = (now - moment(last)).days
    seen = f"{moment(last):%Y-%m-%d}, {days} days ago"
    if days > BACKUP_DAYS:
        return Finding("server", "backup", "warning", seen, remedy)
    return Finding("server", "backup", "ok", seen)
