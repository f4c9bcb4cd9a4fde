"""Connection strings: as people write them, as libpq takes them, and as they may be shown."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, urlencode

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from queue_pg.errors import ConfigError

MASK = "***"
_SCHEME = re.compile(r"^(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://")
# To the last @ before the parameters: a password with a / or @ that should be %2F or %40 shall not be in a log either.
_PASSWORD_IN_URL = re.compile(r"(?<=://)(?P<user>[^:@/?#]*):(?:(?![?]\w+=).)*(?=@)", re.DOTALL)
_PASSWORD_IN_QUERY = re.compile(r"(?<=[?&])(?P<name>(?:ssl)?password)=[^&#]*")
_PASSWORD_IN_PAIRS = re.compile(r"\b(?P<name>(?:ssl)?password)\s*=\s*(?:'(?:[^'\\]|\\.)*'|\S*)")
_RESERVED = frozenset("/?#@")
_QUOTED = re.compile(r"\"[^\"]*\"")
# Parameters of asyncpg and its SQLAlchemy dialect; libpq would refuse the whole string for them.
_NOT_LIBPQ = {
    "async_fallback",
    "command_timeout",
    "max_cached_statement_lifetime",
    "prepared_statement_cache_size",
    "prepared_statement_name_func",
    "statement_cache_size",
}
_SSL_WORDS = {"true": "require", "1": "require", "false": "disable", "0": "disable"}


def normalise_dsn(dsn: str) -> str:
    """Return `dsn` as libpq takes it.

    Accepts `postgres://`, SQLAlchemy's `postgresql+<driver>://` with asyncpg's parameters, and `key=value` pairs.
    Raises ConfigError (which never shows the password) for anything else.
    """
    given = dsn = dsn.strip()
    scheme = _SCHEME.match(dsn)
    if scheme is not None:
        database = scheme["scheme"].lower().partition("+")[0]
        if database not in ("postgres", "postgresql"):
            raise _invalid(dsn, f"{scheme['scheme']}:// is not Postgres")
        dsn = "postgresql://" + _libpq_query(dsn[scheme.end() :])
    elif "=" not in dsn:
        raise _invalid(dsn, "it is no connection string")
    try:
        parts = conninfo_to_dict(dsn)
        # libpq would only tell at the first connection.
        for port in str(parts.get("port", "")).split(","):
            if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
                raise ValueError(f'"{port}" is no port')
    except (ProgrammingError, UnicodeError, ValueError) as error:
        reason = " ".join(mask_dsn(str(error)).split())
        password = _PASSWORD_IN_URL.search(given)
        if password is not None and not _RESERVED.isdisjoint(password[0]):
            # What is quoted is a part of the URL, cut in the midst of the password.
            reason = f"{_QUOTED.sub('...', reason)}; / ? # and @ of a password are written %2F %3F %23 and %40"
        raise _invalid(given, reason) from None
    return dsn


def _libpq_query(rest: str) -> str:
    address, mark, query = rest.partition("?")
    if not mark:
        return rest
    kept: list[tuple[str, str]] = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "ssl":
            kept.append(("sslmode", _SSL_WORDS.get(value.lower(), value)))
        elif name not in _NOT_LIBPQ:
            kept.append((name, value))
    return f"{address}?{urlencode(kept, quote_via=quote)}" if kept else address


def mask_dsn(dsn: str) -> str:
    """Return `dsn` with every password replaced, also when it is malformed."""
    masked = _PASSWORD_IN_URL.sub(rf"\g<user>:{MASK}", dsn)
    masked = _PASSWORD_IN_QUERY.sub(rf"\g<name>={MASK}", masked)
    return masked if _SCHEME.match(dsn) else _PASSWORD_IN_PAIRS.sub(rf"\g<name>={MASK}", masked)


def with_database(dsn: str, database: str) -> str:
    """Return `dsn` with another database name."""
    if _SCHEME.match(dsn) is None:
        return make_conninfo(dsn, dbname=database)
    address, mark, query = dsn.partition("?")
    scheme, _, rest = address.partition("://")
    host = rest.partition("/")[0]
    return f"{scheme}://{host}/{quote(database, safe='')}{mark}{query}"


def _invalid(dsn: str, reason: str) -> ConfigError:
    return ConfigError(
        f"DATABASE_URL {mask_dsn(dsn)!r} cannot be used: {reason}.",
        setting="DATABASE_URL",
        hint="Write it like postgresql://user:password@host:5432/database",
    )
