"""Adapter versions on disk and their records: publish, find, alias, remove, verify.

A version is a folder plus one row. The row decides: a folder counts only once its row is committed
(artifacts.version_folder settles what a crash left between the two). Numbers come from a stored
counter and are never given twice. Knows nothing of what the weights mean, nor who relies on a
version, only that somebody does (``set_uses``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import ForeignKeyConstraint, Integer, String, Text, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from artifacts.audit import GATE_OVERRIDE, append
from artifacts.catalog import AdapterVersion, Catalog
from artifacts.database import Database, Table
from artifacts.errors import Conflict, NotFound, StorageError
from artifacts.heldout import heldout_hashes, remove_heldout
from artifacts.home import Home
from artifacts.manifest import AdapterManifest, ManifestDraft
from artifacts.names import CHAMPION, AdapterRef, check_alias, check_name
from artifacts.safe_write import publish_folder
from artifacts.scratch import clear_scratch
from artifacts.storage import storage_errors
from artifacts.version_folder import VersionFolders

__all__ = ["AdapterRow", "AdapterVersion", "Registry", "VersionRow", "set_uses"]

Paths = list[Path]  # inside Registry, ``list`` is its method


class AdapterRow(Table):
    """One name and the number its next version gets."""

    __tablename__ = "adapters"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    next_version: Mapped[int] = mapped_column(Integer, default=1)


class VersionRow(Table):
    __tablename__ = "adapter_versions"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    content_hash: Mapped[str] = mapped_column(String(64), index=True)
    manifest: Mapped[str] = mapped_column(Text)  # the JSON of AdapterManifest
    __table_args__ = (ForeignKeyConstraint(["name"], ["adapters.name"]),)


class AliasRow(Table):
    __tablename__ = "adapter_aliases"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    __table_args__ = (
        ForeignKeyConstraint(
            ["name", "version"], ["adapter_versions.name", "adapter_versions.version"]
        ),
    )


class UseRow(Table):
    """Somebody outside the registry relies on a version: it cannot be removed."""

    __tablename__ = "adapter_uses"
    user: Mapped[str] = mapped_column(String(128), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    __table_args__ = (
        ForeignKeyConstraint(
            ["name", "version"], ["adapter_versions.name", "adapter_versions.version"]
        ),
    )


class Registry:
    """All versions under one home. Safe from many threads and processes at once."""

    def __init__(self, home: Home, database: Database) -> None:
        self.home = home
        self.database = database
        self.on_change: Callable[[], None] = lambda: None  # called after each change of ours
        self._folders = VersionFolders(home)
        self._parsed: dict[tuple[str, int], AdapterVersion] = {}  # versions never change
        database.create_tables()

    # --- writing ---

    def publish(self, name: str, folder: Path, manifest: ManifestDraft) -> AdapterVersion:
        """Move the finished PEFT folder in as the next version of ``name``.

        The folder is gone afterwards. The first version that did not fail its gate becomes
        ``champion``, later ones change no alias. On any failure nothing is registered and the
        folder is where it was. Raises InvalidName, InvalidInput, StorageError.
        """
        check_name(name)
        with storage_errors(self.home.root):
            staged = self._folders.stage(folder)
        final: Path | None = None
        try:
            with self._writing() as session:
                row = session.get(AdapterRow, name) or AdapterRow(name=name, next_version=1)
                session.add(row)
                self._sweep(session, row)
                record = AdapterManifest(
                    **manifest.model_dump(),
                    name=name,
                    version=row.next_version,
                    created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                    files=staged.hashes,
                )
                record = staged.write_record(record)
                final = self._folders.path(name, record.version)
                publish_folder(staged.path, final)
                is_champion = self._is_first_fit(session, record)
                _insert(session, row, record)
                if is_champion:
                    session.add(AliasRow(name=name, alias=CHAMPION, version=record.version))
        except BaseException:
            if final is not None and not self._may_be_committed(name, final):
                staged.take_back(final)
            staged.discard_copy()
            raise
        self._folders.confirm(final)
        staged.discard_source()
        return AdapterVersion(name, record.version, final, record.content_hash, record)

    def set_alias(
        self, name: str, alias: str, version: int, *, forced_by: str | None = None
    ) -> int | None:
        """Point ``name@alias`` at a version; returns the version it pointed at before.

        Conflict if the version failed its gate, unless somebody answers for it: ``forced_by``
        goes into the audit trail in the same transaction.
        """
        check_alias(alias)
        with self._writing() as session:
            wanted = self._read(session).get(check_name(name), version)
            use = f"the alias {name}@{alias}"
            if forced_by is None:
                wanted.refuse_unfit(use)
            elif not wanted.is_fit:
                append(session, forced_by, GATE_OVERRIDE, wanted.id, use=use)
            row = session.get(AliasRow, (name, alias))
            if row is None:
                session.add(AliasRow(name=name, alias=alias, version=version))
                return None
            before, row.version = row.version, version
            return before

    def delete_alias(self, name: str, alias: str) -> None:
        """Forget ``name@alias``; NotFound if it does not exist."""
        ref = AdapterRef(check_name(name), alias=check_alias(alias))
        with self._writing() as session:
            self._read(session).resolve(ref)
            session.delete(session.get_one(AliasRow, (name, alias)))

    def remove(self, name: str, version: int, *, force: bool = False) -> None:
        """Delete a version for good, with the rows kept for comparing it; its number stays used.

        Conflict if somebody relies on it (``set_uses``), or if an alias points at it unless
        ``force``, which deletes those aliases too.
        """
        path = self._folders.path(check_name(name), version)
        with self._writing() as session:
            self._read(session).get(name, version)
            _check_unused(session, name, version)
            pointing = session.scalars(select(AliasRow).filter_by(name=name, version=version)).all()
            if pointing and not force:
                listed = ", ".join(sorted(f"{name}@{alias.alias}" for alias in pointing))
                raise Conflict(
                    f"{name}@{version} is what {listed} points at; move the alias first, or "
                    "remove with force to delete both"
                )
            for alias in pointing:
                session.delete(alias)
            session.flush()
            row = session.get_one(VersionRow, (name, version))
            content_hash = row.content_hash
            session.delete(row)
            session.flush()
            is_last = content_hash not in _content_hashes(session)
            self._folders.doubt(path)  # from the commit on, it is rubbish
        self._folders.discard(path)
        if is_last:
            remove_heldout(self.home, content_hash)

    def recover(self) -> Paths:
        """Clear what crashes left behind; returns the folders removed. Call at start-up."""
        heldout = heldout_hashes(self.home)  # before the rows: a version is committed before these
        with self._writing() as session:
            rows = {row.name: row for row in session.scalars(select(AdapterRow))}
            removed = [path for row in rows.values() for path in self._sweep(session, row)]
            for name in self._folders.names() - rows.keys():
                removed += self._folders.discard_doubtful(name, set())
            unknown = heldout - _content_hashes(session)
        for content_hash in unknown:
            remove_heldout(self.home, content_hash)
        return removed + clear_scratch(self.home.tmp)

    # --- reading ---

    def catalog(self) -> Catalog:
        """All versions and aliases as they are now."""
        with self.database.reading() as session:
            return self._read(session)

    def get(self, name: str, version: int) -> AdapterVersion:
        """NotFound names what exists."""
        return self.catalog().get(check_name(name), version)

    def resolve(self, ref: AdapterRef) -> AdapterVersion:
        """What a reference means now; a bare name means its champion, else its latest."""
        return self.catalog().resolve(ref)

    def list(self) -> list[AdapterVersion]:
        """Every version, by name and number."""
        return self.catalog().list()

    def aliases(self, name: str) -> dict[str, int]:
        """Stored aliases of a name; ``latest`` is computed and not among them."""
        return self.catalog().aliases(name)

    def verify(self, name: str, version: int) -> None:
        """Hash the version's files again; Corrupt names the first that differs from the record."""
        self._folders.verify(self.get(name, version).manifest)

    # --- below ---

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with storage_errors(self.home.root), self.database.session() as session:
            yield session
        self.on_change()

    def _read(self, session: Session) -> Catalog:
        columns = (VersionRow.name, VersionRow.version, VersionRow.content_hash)
        rows = session.execute(select(*columns).order_by(*columns)).all()
        known = {
            (name, number): version
            for name, number, content_hash in rows
            if (version := self._parsed.get((name, number))) is not None
            and version.content_hash == content_hash
        }
        if len(known) < len(rows):
            for row in session.scalars(select(VersionRow)):
                if (row.name, row.version) not in known:
                    known[row.name, row.version] = self._load(row)
        self._parsed = known
        versions: dict[str, dict[int, AdapterVersion]] = {}
        for name, number, _ in rows:
            versions.setdefault(name, {})[number] = known[name, number]
        aliases: dict[str, dict[str, int]] = {}
        for alias in session.scalars(select(AliasRow).order_by(AliasRow.name, AliasRow.alias)):
            aliases.setdefault(alias.name, {})[alias.alias] = alias.version
        return Catalog(versions, aliases)

    def _load(self, row: VersionRow) -> AdapterVersion:
        try:
            manifest = AdapterManifest.model_validate_json(row.manifest)
        except ValidationError as error:
            raise StorageError(
                f"the record of {row.name}@{row.version} in the database {self.database.place} is "
                "damaged; restore the database from a copy"
            ) from error
        path = self._folders.path(row.name, row.version)
        return AdapterVersion(row.name, row.version, path, row.content_hash, manifest)

    def _is_first_fit(self, session: Session, record: AdapterManifest) -> bool:
        """Whether nobody before it could answer for its name; a forced champion stays."""
        if record.gate == "failed" or session.get(AliasRow, (record.name, CHAMPION)) is not None:
            return False
        rows = session.scalars(select(VersionRow).filter_by(name=record.name))
        return not any(self._load(row).is_fit for row in rows)

    def _sweep(self, session: Session, row: AdapterRow) -> Paths:
        """Remove crash leftovers of one name and move its counter past every number on disk."""
        row.next_version = max(row.next_version, 1 + self._folders.highest(row.name))
        return self._folders.discard_doubtful(row.name, set(_versions(session, row.name)))

    def _may_be_committed(self, name: str, folder: Path) -> bool:
        """Whether a failed commit left a row after all; its mark settles it if nobody can say."""
        try:
            return int(folder.name) in self.catalog().versions.get(name, {})
        except StorageError:
            return True


def set_uses(session: Session, user: str, versions: Iterable[tuple[str, int]]) -> None:
    """Record, in the caller's transaction, that ``user`` relies on exactly these versions.

    Raises NotFound if one of them is not registered.
    """
    session.execute(delete(UseRow).where(UseRow.user == user))
    for name, version in versions:
        if session.get(VersionRow, (name, version)) is None:
            raise NotFound(f"there is no adapter {name}@{version}; choose one that exists")
        session.add(UseRow(user=user, name=name, version=version))


def _check_unused(session: Session, name: str, version: int) -> None:
    query = select(UseRow.user).filter_by(name=name, version=version).order_by(UseRow.user)
    if users := session.scalars(query).all():
        raise Conflict(
            f"{name}@{version} is in use by {', '.join(users)}; end or change that first, then "
            "remove the version"
        )


def _insert(session: Session, row: AdapterRow, record: AdapterManifest) -> None:
    row.next_version = record.version + 1
    session.add(
        VersionRow(
            name=record.name,
            version=record.version,
            content_hash=record.content_hash,
            manifest=record.model_dump_json(),
        )
    )
    session.flush()


def _content_hashes(session: Session) -> set[str]:
    return set(session.scalars(select(VersionRow.content_hash)))


def _versions(session: Session, name: str) -> list[int]:
    order = VersionRow.version
    return list(session.scalars(select(order).filter_by(name=name).order_by(order)))
