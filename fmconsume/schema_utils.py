"""Avatar addresses, under the names that message classes import; any thread may call."""

from __future__ import annotations

import urllib.parse

__all__ = ["libravatar_url", "user_avatar_url"]


def user_avatar_url(username: str, size: int = 64, default: str = "retro") -> str:
    """Return the address of a Fedora user's avatar.

    Args:
        username: Name of the Fedora account.
        size: Width and height in pixels.
        default: What Libravatar shows for a user without an avatar.
    """
    openid = f"http://{username}.id.fedoraproject.org/"
    return libravatar_url(openid=openid, size=size, default=default)


def libravatar_url(
    email: str | None = None,
    openid: str | None = None,
    size: int = 64,
    default: str = "retro",
) -> str:
    """Return the address of an avatar at Libravatar.

    Args:
        email: Whose avatar; goes before openid.
        openid: Whose avatar, by OpenID.
        size: Width and height in pixels.
        default: What Libravatar shows for somebody it does not know.

    Raises:
        ValueError: Neither email nor openid is given.
    """
    import hashlib  # Large, and most consumers show no avatars.

    owner = email or openid
    if not owner:
        raise ValueError("an avatar needs an email or an openid")
    digest = hashlib.sha256(owner.encode()).hexdigest()
    query = urllib.parse.urlencode({"s": size, "d": default})
    return f"https://seccdn.libravatar.org/avatar/{digest}?{query}"
