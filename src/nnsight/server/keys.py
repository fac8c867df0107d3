"""Who may use a server. Of a key only its hash is kept; it is shown once, when it is made.

A key is `id.secret`, or a UUID for clients that send nothing else. Both are drawn at random with at
least 122 bits, so one round of SHA-256 hides them: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import secrets
import time
import uuid
from dataclasses import dataclass

from nnsight.server.store import Store


@dataclass(frozen=True)
class Key:
    """One user of a server."""

    id: str
    name: str
    trusted: bool  # whether the user's code may run in the process that holds the weights


LOCAL = Key("local", "local", True)
"""Who asks a server without keys: somebody on the same machine."""

NOBODY = Key("", "", False)
"""Who comes with a signed link to one result and nothing else."""


def add(store: Store, name: str, *, trusted: bool = False, as_uuid: bool = False) -> str:
    """Make a key; its text is in no place but the value given back."""
    id = secrets.token_hex(4)
    text = str(uuid.uuid4()) if as_uuid else f"{id}.{secrets.token_urlsafe(32)}"
    row = (id, _hash(text), name, int(trusted), time.time())
    store.base.execute(
        "INSERT INTO keys (id, hash, name, trusted, created) VALUES (?,?,?,?,?)", row
    )
    return text


def remove(store: Store, id: str) -> bool:
    """Whether there was a key of that id; from now on it is refused."""
    return store.base.execute("DELETE FROM keys WHERE id = ?", (id,)).rowcount > 0


def every(store: Store) -> list[Key]:
    found = store.base.execute("SELECT id, name, trusted FROM keys ORDER BY created")
    return [Key(id, name, bool(trusted)) for id, name, trusted in found]


def known(store: Store, text: str) -> Key | None:
    """The key whose text this is."""
    found = store.base.execute(
        "SELECT id, name, trusted FROM keys WHERE hash = ?", (_hash(text),)
    ).fetchone()
    return None if found is None else Key(found[0], found[1], bool(found[2]))


def is_trusted(store: Store, id: str) -> bool:
    """Whether the code of jobs of this key may run in the process that holds the weights.

    A key that is there no more is not trusted.
    """
    if id == LOCAL.id:
        return LOCAL.trusted
    row = store.base.execute("SELECT trusted FROM keys WHERE id = ?", (id,)).fetchone()
    return row is not None and bool(row[0])


def are_needed(store: Store) -> bool:
    """Whether requests must carry a key: as soon as there is one."""
    return store.base.execute("SELECT EXISTS (SELECT 1 FROM keys)").fetchone()[0] == 1


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
