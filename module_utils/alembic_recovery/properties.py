"""What hangs on a database's own entry: read, given to another database, and compared.

A dump (without `--create`), a rename and a copy by TEMPLATE carry none of it over: who may connect, settings of the
database and of roles in it, comment, labels, connection limit. What CREATE DATABASE decides for good is here, too.
"""

from __future__ import annotations

import typing as t

from ansible.module_utils.alembic_recovery import sql

Properties = t.Mapping[str, t.Any]

# Their values are lists of names, kept with the quotes that the names need: quoted again as one word, they would be one
# name. PostgreSQL's own list of them (GUC_LIST_QUOTE), which extensions cannot add to.
_LISTS = frozenset(
    {
        "local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
        "temp_tablespaces", "unix_socket_directories",
    }
)  # fmt: skip
# PostgreSQL 15: before, every copy was made file by file.
_HAS_STRATEGY = 150000
_HAS_PROVIDER = 150000

#: Columns that PostgreSQL 13 to 18 name differently, or do not have, come from the row as JSON.
_QUERY = """
    select d.oid::bigint as oid, d.datname as name, pg_get_userbyid(d.datdba) as owner,
           pg_encoding_to_char(d.encoding) as encoding, d.datcollate, d.datctype,
           coalesce(j->>'datlocprovider', 'c') as provider, coalesce(j->>'datlocale', j->>'daticulocale') as locale,
           j->>'daticurules' as icu_rules,
           (select spcname from pg_tablespace where oid = d.dattablespace) as tablespace,
           d.datconnlimit as connection_limit, d.datallowconn as allow_connections, d.datistemplate as is_template,
           -- Nothing noted is what PostgreSQL grants by itself.
           coalesce(d.datacl = acldefault('d', d.datdba), true) as plain_acl,
           coalesce((select jsonb_agg(jsonb_build_object(
                         'role', case when a.grantee <> 0 then pg_get_userbyid(a.grantee) end,
                         'privilege', a.privilege_type, 'grantable', a.is_grantable,
                         'by', pg_get_userbyid(a.grantor)) order by a.grantee <> 0, pg_get_userbyid(a.grantee),
                         a.privilege_type, pg_get_userbyid(a.grantor))
                     from aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a), '[]') as acl,
           shobj_description(d.oid, 'pg_database') as comment,
           coalesce((select jsonb_agg(jsonb_build_object('provider', l.provider, 'label', l.label) order by l.provider)
                     from pg_shseclabel l where l.classoid = 'pg_database'::regclass and l.objoid = d.oid), '[]')
               as labels,
           coalesce((select jsonb_agg(jsonb_build_object('role', r.rolname, 'settings', s.setconfig) order by r.rolname)
                     from pg_db_role_setting s left join pg_roles r on r.oid = s.setrole
                     where s.setdatabase = d.oid), '[]') as settings
    from pg_database d cross join lateral to_jsonb(d) j where d.datname = {name}"""

#: What two databases are compared in, with the words for it.
_COMPARED = {
    "owner": "owner",
    "encoding": "encoding",
    "datcollate": "LC_COLLATE",
    "datctype": "LC_CTYPE",
    "provider": "provider of its locale",
    "locale": "locale",
    "icu_rules": "ICU rules",
    "tablespace": "tablespace",
    "connection_limit": "connection limit",
    "is_template": "mark as a template",
    "comment": "comment",
    "labels": "security labels",
}


class _Asks(t.Protocol):
    def ask(self, query: str) -> list[dict[str, t.Any]]:
        """The rows of a query."""


def query(name: str | None = None) -> str:
    """The question for a database's properties: of the one of that name, or of the one that is asked."""
    return _QUERY.format(name="current_database()" if name is None else sql.literal(name))


def read(connection: _Asks, name: str) -> dict[str, t.Any] | None:
    """The properties of a database of the server; ``None``: there is none of that name.

    It may be closed: `connection` is to another one.

    :raises DatabaseError: they could not be read.
    """
    rows = connection.ask(query(name))
    return rows[0] if rows else None


def create_statement(
    like: Properties,
    name: str,
    owner: str,
    *,
    server_version_num: int,
    template: str | None = None,
    strategy: str | None = None,
    connection_limit: int | None = None,
) -> str:
    """CREATE DATABASE for a database like another one.

    :param like: the other one's properties.
    :param template: a database to be copied as it is, encoding and locale included; else an empty one is made.
    :param strategy: ``file_copy`` or ``wal_log``, where the server knows such a thing.
    :param connection_limit: another limit than that of `like`.
    """
    words = [f"create database {sql.identifier(name)} template {sql.identifier(template or 'template0')}"]
    words.append(f"owner {sql.identifier(owner)}")
    if template is None:
        words += _locale(like, server_version_num)
        # Whoever names a tablespace must have been granted it, and be it the one that it would be anyway.
        if like["tablespace"] != "pg_default":
            words.append(f"tablespace {sql.identifier(like['tablespace'])}")
    limit = like["connection_limit"] if connection_limit is None else connection_limit
    words.append(f"allow_connections true connection limit {int(limit)}")
    if strategy and server_version_num >= _HAS_STRATEGY:
        words.append(f"strategy {strategy}")
    return " ".join(words)


def _locale(like: Properties, server_version_num: int) -> list[str]:
    words = [
        f"encoding {sql.literal(like['encoding'])}",
        f"lc_collate {sql.literal(like['datcollate'])} lc_ctype {sql.literal(like['datctype'])}",
    ]
    provider = like["provider"]
    if server_version_num >= _HAS_PROVIDER:
        words.append(f"locale_provider {({'i': 'icu', 'b': 'builtin'}).get(provider, 'libc')}")
    if provider == "i":
        words.append(f"icu_locale {sql.literal(like['locale'])}")
        words += [f"icu_rules {sql.literal(like['icu_rules'])}"] if like["icu_rules"] else []
    if provider == "b":
        words.append(f"builtin_locale {sql.literal(like['locale'])}")
    return words


def statements(source: Properties, target: str) -> list[str]:
    """What gives a new database `target` (of the same owner) all that no copy carries over."""
    return [*access_statements(source, target), *setting_statements(source, target)]


def access_statements(source: Properties, target: str) -> list[str]:
    """Who may connect to it, and make schemas and temporary tables in it."""
    if source["plain_acl"]:
        return []
    name, owner = sql.identifier(target), source["owner"]
    given = [f"revoke all on database {name} from public, {sql.identifier(owner)}"]
    may_grant = {owner}
    waiting = sorted(source["acl"], key=lambda item: item["by"] != owner)
    while waiting:
        # Who was given a privilege to grant it further must have it first.
        ready = [item for item in waiting if item["by"] in may_grant] or waiting
        for item in ready:
            grant = f"grant {item['privilege']} on database {name} to {_role(item['role'])}"
            grant += " with grant option" if item["grantable"] else ""
            if item["by"] == owner:
                given.append(grant)
            else:
                given += [f"set role {sql.identifier(item['by'])}", grant, "reset role"]
            if item["grantable"]:
                may_grant.add(item["role"])
        waiting = [item for item in waiting if item not in ready]
    return given


def setting_statements(source: Properties, target: str) -> list[str]:
    """Settings, comment, labels, connection limit: the settings change what a new session does."""
    name = sql.identifier(target)
    given = []
    for part in source["settings"]:
        who = f"alter database {name}"
        if part["role"] is not None:
            who = f"alter role {sql.identifier(part['role'])} in database {name}"
        given += [f"{who} {setting_clause(setting)}" for setting in part["settings"]]
    if source["comment"] is not None:
        given.append(f"comment on database {name} is {sql.literal(source['comment'])}")
    given += [
        f"security label for {sql.identifier(label['provider'])} on database {name} is {sql.literal(label['label'])}"
        for label in source["labels"]
    ]
    given.append(f"alter database {name} connection limit {int(source['connection_limit'])}")
    if source["is_template"]:
        given.append(f"alter database {name} is_template true")
    return given


def setting_clause(setting: str) -> str:
    """`SET name TO value` from an item of `setconfig`."""
    name, _, value = setting.partition("=")
    items = _split_names(value) if name.lower() in _LISTS else [value]
    quoted = ", ".join(sql.literal(item).strip() for item in items) or "''"
    return f"set {sql.identifier(*name.split('.'))} to {quoted}"


def _split_names(value: str) -> list[str]:
    """The names of a list, without the quotes that PostgreSQL has written around those that need them."""
    names, name, position = [], "", 0
    quoted = False
    while position < len(value):
        letter = value[position]
        if letter == '"' and quoted and value[position + 1 : position + 2] == '"':
            name += letter
            position += 1
        elif letter == '"':
            quoted = not quoted
        elif letter == "," and not quoted:
            names.append(name)
            name = ""
        elif quoted or not letter.isspace():
            name += letter
        position += 1
    return [*names, name] if value else []


def differences(source: Properties, target: Properties) -> list[str]:
    """In what a database's properties are not those of another, one sentence each.

    :param source: how they should be.
    """
    found = [
        f"Its {words} is {target[key]!r}, not {source[key]!r}."
        for key, words in _COMPARED.items()
        if source[key] != target[key]
    ]
    wanted, there = {_granted(item) for item in source["acl"]}, {_granted(item) for item in target["acl"]}
    found += [f"Missing: {item}." for item in sorted(wanted - there)]
    found += [f"Too much: {item}." for item in sorted(there - wanted)]
    wanted, there = _settings(source), _settings(target)
    found += [f"Missing: the setting {item}." for item in sorted(wanted - there)]
    found += [f"Too much: the setting {item}." for item in sorted(there - wanted)]
    return found


def not_carried(source: Properties, user: str, contexts: t.Mapping[str, str]) -> list[str]:
    """The settings that a role which is no superuser may not give another database.

    :param contexts: who may set what, by the setting's name in lower case, as pg_settings has it.
    """
    return [
        f"{key} of {part['role']}" if part["role"] else key
        for part in source["settings"]
        for key in (text.partition("=")[0] for text in part["settings"])
        # One that the server does not know (myapp.flag) is refused as well, since PostgreSQL 15.
        if contexts.get(key.lower()) != "user" or part["role"] not in (None, user)
    ]


def roles(source: Properties) -> set[str]:
    """The roles that must be there before a database can be given these properties."""
    named = {source["owner"], *(item["role"] for item in source["acl"]), *(item["by"] for item in source["acl"])}
    named.update(part["role"] for part in source["settings"])
    return {name for name in named if name is not None}


def _role(name: str | None) -> str:
    return "public" if name is None else sql.identifier(name)


def _granted(item: t.Mapping[str, t.Any]) -> str:
    further = " with grant option" if item["grantable"] else ""
    return f"{item['privilege']} for {item['role'] or 'PUBLIC'}{further}, granted by {item['by']}"


def _settings(source: Properties) -> set[str]:
    return {
        f"{setting} of {part['role'] or 'the database'}" for part in source["settings"] for setting in part["settings"]
    }
