"""Where the settings come from (a TOML file, the environment, other files), what is wrong with them in words for a person, and
the places they name.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from msgspec import Struct
from pydantic import ValidationError

from receiver.core.errors import ConfigError, Problem, SettingsError
from receiver.settings.model import DestinationSettings, Section, Settings, SourceSettings
from receiver.system.files import make_folder, sync_folder, write_file


def problems_of(error: ValidationError, model: type[Section], above: str = "") -> list[Problem]:
    """Return what is wrong, each with its place under `above`, and what may have been meant."""
    found = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        place, holders, inner = place_of(model, item["loc"])
        where = f"{above}{place}".strip(".")
        message, fix = item["msg"].removeprefix("Value error, "), ""
        if item["type"] == "extra_forbidden":
            message = "no such setting"
            fields = (pair for holder in holders for pair in holder.model_fields.items())
            known = (field.alias or name for name, field in fields)
            table, _, name = place.rpartition(".")
            fix = did_you_mean(name, known) or f"see {model.manual}"
            if table and name in model.model_fields:
                fix = f"write {name} above the first [table] of the file"
        elif item["type"] == "missing":
            message = "is missing"
        elif item["type"].startswith("union_tag_"):
            message = "kind is missing, or none that there is"
            fix = "write one of " + ", ".join(sorted(_kinds(inner)))
        elif item["type"] == "string_type" and where.startswith("retention."):
            message = 'write it as "90d": a number and a unit, in quotes'
        found.append(Problem(where, message, fix))
    return found


Models = tuple[type[Section], ...]


def place_of(model: type[Section], loc: Sequence[str | int]) -> tuple[str, Models, Models]:
    """Return a place as a person writes it, `.proof[0].header`, and the models of the table that it is in, and of its own."""
    text = ""
    holders: Models = (model,)
    inner = holders
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]" * bool(inner)
            continue
        kinds = tuple(each for each in inner if part in _kinds((each,)))
        if kinds and len(inner) > 1:  # pydantic names the table's kind as a step of its own
            inner = kinds
        elif part != "*":  # stands for the whole table
            text, holders = f"{text}.{part}", inner
            found = tuple(kind for each in inner for kind in _sections(kind_at(each, part)))
            inner = found or (inner if not any(kind_at(each, part) for each in inner) else ())
    return text, holders, inner


def _kinds(models: Models) -> set[str]:
    return {word for each in models for word in get_args(kind_at(each, "kind"))}


def kind_at(model: type[Section], name: str) -> Any:
    """Return the annotation of a setting; None when there is no such setting."""
    fields = model.model_fields.items()
    return next((field.annotation for own, field in fields if name in (own, field.alias)), None)


def _sections(kind: Any) -> Iterable[type[Section]]:
    if isinstance(kind, type):
        return (kind,) if issubclass(kind, Section) else ()
    return (found for part in get_args(kind) for found in _sections(part))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `did you mean …?` with the nearest of the names there are; empty when none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


T = TypeVar("T", bound=Section)
_PREFIX = "RECEIVER__"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
Reader = Callable[[str], str]
"""Reads a text file, given its path; raises `OSError`."""

EXPORT = "export it"
"""What to do about a variable of the environment that is not set."""
_DEFAULT_SOURCES: Mapping[str, Any] = {"deepgram": {"provider": "deepgram", "require_token": True}}
"""With no file at all: Deepgram, proved by the callback tokens that `receiver callback-url` hands out."""


class Loaded(Struct):
    """What was read: the settings, and what is wrong with them."""

    settings: Settings | None = None
    """All that can be understood; None when nothing could be made of it."""
    problems: list[Problem] = []
    quoted: list[str] = []
    """The settings whose value from a variable or file stands in quotes."""


def load_settings(path: str | None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings file (`path`, else RECEIVER_CONFIG, else ./receiver.toml if it is there). Raises `ConfigError`."""
    return _whole(look(path, os.environ if environ is None else environ))


def file_of(path: str | None, environ: Mapping[str, str]) -> Path:
    """Return the settings file: `path`, else RECEIVER_CONFIG, else receiver.toml."""
    return Path(path or environ.get("RECEIVER_CONFIG") or "receiver.toml")


def look(path: str | None, environ: Mapping[str, str]) -> Loaded:
    """Read the settings file as `load_settings` does, and return what is wrong with it as well."""
    text, file = None, file_of(path, environ)
    if path or environ.get("RECEIVER_CONFIG") or file.exists():
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            return Loaded(problems=[Problem("", f"{file} cannot be read: {reason}")])
    return _read(text, environ, lambda name: (file.parent / name).read_text("utf-8"), file.parent)


def parse(text: str | None, environ: Mapping[str, str], read: Reader) -> Settings:
    """Return the settings of a TOML text (None: no file) under `environ`. Raises `ConfigError`, never with a secret in it."""
    return _whole(_read(text, environ, read))


def _whole(loaded: Loaded) -> Settings:
    if loaded.problems or loaded.settings is None:
        raise SettingsError(loaded.problems)
    return loaded.settings


def wanted_log(path: str | None, environ: Mapping[str, str]) -> str:
    """Return `server.log`, even from settings that are otherwise invalid: their errors are logged in that style too."""
    try:
        raw = tomllib.loads(file_of(path, environ).read_text("utf-8")).get("server", {})
    except (OSError, ValueError, RecursionError):
        raw = {}
    written = raw.get("log") if isinstance(raw, dict) else None
    return str(environ.get(f"{_PREFIX}SERVER__LOG") or written or "auto")


def _read(text: str | None, environ: Mapping[str, str], read: Reader, folder: Path = Path()) -> Loaded:
    try:
        raw: dict[str, Any] = tomllib.loads(text) if text is not None else {}
        written = tomllib.loads(text or "")
        _override(raw, environ)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        return Loaded(problems=[Problem("", f"the settings are not valid TOML: {error}")])
    except SettingsError as error:
        return Loaded(problems=list(error.problems))
    if text is None and "sources" not in raw:
        raw["sources"] = {name: dict(fields) for name, fields in _DEFAULT_SOURCES.items()}
    loaded = Loaded()
    resolved = _resolve(raw, "", _Outside(environ, read, loaded))
    _name_sections(resolved, loaded.problems)
    _anchor(resolved, folder)
    found = _validate(resolved, loaded)
    unread = {problem.where for problem in loaded.problems}
    loaded.problems += [problem for problem in found if problem.where not in unread]
    blame = _Blame(environ, written, resolved)
    loaded.problems = [blame.of(problem) for problem in loaded.problems]
    return loaded


def _anchor(raw: dict[str, Any], folder: Path) -> None:
    """Have relative paths begin at the folder of the settings file, whichever folder the command runs in."""
    raw.setdefault("data", Settings.model_fields["data"].default)
    named = [table for section in ("sources", "destinations") for table in raw.get(section, {}).values()]
    places = [(raw, "data"), (raw.get("journal"), "path")]
    files = ("ca_file", "client_certificate", "credentials_file")
    places += [(table, key) for table in (raw.get("blobs"), *named) for key in files]
    for table, key in places:
        if isinstance(table, dict) and isinstance(path := table.get(key), str) and path:
            table[key] = str(folder / path)
    store = raw.get("store")
    if isinstance(store, dict) and (found := _RELATIVE.fullmatch(str(store.get("url")))):
        store["url"] = f"sqlite:///{folder / found[1]}"


_RELATIVE = re.compile("sqlite:///([^/:].*)")


def _validate(resolved: dict[str, Any], loaded: Loaded) -> list[Problem]:
    """Make the settings, without what is wrong with them where they can be made without it; return what is wrong."""
    try:
        loaded.settings = Settings.model_validate(resolved)
    except ValidationError as error:
        for item in error.errors(include_url=False, include_context=False, include_input=False):
            _drop(resolved, item["loc"][:-1] if item["type"] == "missing" else item["loc"])
        with contextlib.suppress(ValidationError):
            loaded.settings = Settings.model_validate(resolved)
        return problems_of(error, Settings)
    return []


def _drop(table: Any, place: Sequence[int | str]) -> None:
    """Remove what stands at a place, of a list the whole."""
    *above, last = [part for part in place if isinstance(part, str)]
    for part in above:
        table = table.get(part) if isinstance(table, dict) else None
    if isinstance(table, dict):
        table.pop(last, None)


def _override(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, value in sorted(environ.items()):
        if not name.startswith(_PREFIX):
            continue
        *sections, key = _path_of(name)
        table = raw
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise SettingsError([Problem(name, f"it names a section that is a plain value: {section}")])
        table[key] = _toml_value(value)
    server = raw.setdefault("server", {})
    # Before the file's, which `init` wrote: where a platform sets PORT, it sends requests to no other.
    if isinstance(server, dict) and "PORT" in environ and f"{_PREFIX}SERVER__PORT" not in environ:
        server["port"] = environ["PORT"]
    store = raw.setdefault("store", {})
    if isinstance(store, dict) and "DATABASE_URL" in environ:
        store.setdefault("url", environ["DATABASE_URL"])


def _path_of(variable: str) -> list[str]:
    return [part.lower() for part in variable.removeprefix(_PREFIX).split("__")]


def _toml_value(text: str) -> Any:
    """Read an environment value as TOML where it is TOML (numbers, lists, true), else as text."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


class _Outside(Struct, frozen=True):
    """Where values come from that are not written in the settings themselves."""

    environ: Mapping[str, str]
    read: Reader
    loaded: Loaded
    """Collects missing variables and files. All are reported together, so that a person need not find one at each start."""


def _resolve(value: Any, where: str, outside: _Outside) -> Any:
    if isinstance(value, dict):
        return {key: _resolve(item, f"{where}.{key}".lstrip("."), outside) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve(item, where, outside) for item in value]
    if isinstance(value, str):
        try:
            found = _secret(value, where, outside.environ, outside.read)
        except SettingsError as error:
            outside.loaded.problems += error.problems
            return value
        if found != value and found[-1] in "\"'" and (found[0] == found[-1] or found[-1] in found[:-1]):
            outside.loaded.quoted.append(where)
        return found
    return value


_BASIC = re.compile(r"([^:]+):((?:env|file):.+)", re.DOTALL)


def _secret(text: str, where: str, environ: Mapping[str, str], read: Reader) -> str:
    kind, colon, rest = text.partition(":")
    if not colon:
        return text
    if kind == "env":
        value = environ.get(rest, "").strip()  # `echo` and many templates end a value with a line feed
        if not value:
            state = "empty" if rest in environ else "not set"
            raise SettingsError([Problem(where, f"it says env:{rest}, and {rest} is {state}", EXPORT)])
        return value
    if kind == "file" and not rest.startswith("//"):  # a file:// URL is a place, not a secret
        return _from_file(rest, where, read)
    if where.endswith(".basic") and (pair := _BASIC.fullmatch(text)):
        return f"{pair[1]}:{_secret(pair[2], where, environ, read)}"
    return text


def _from_file(path: str, where: str, read: Reader) -> str:
    # What is no secret is shown when it is wrong, and a file that is named by mistake may hold one.
    if _is_shown(where.split(".")):
        fix = "write the value itself, or env:NAME"
        raise SettingsError([Problem(where, f"it says file:{path}, and it is no secret", fix)])
    try:
        found = read(path).strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SettingsError(
            [Problem(where, f"it says file:{path}, which cannot be read: {reason}")]
        ) from None
    if not found:
        fix = "write the secret into it"
        raise SettingsError([Problem(where, f"it says file:{path}, which is empty", fix)])
    return found


def _is_shown(place: Sequence[str]) -> bool:
    """Tell whether a setting is one of those of receiver's own that are no secrets."""
    kinds = [kind_at(holder, place[-1]) for holder in _holders(place)]
    return any(kind is not None and "Secret" not in str(kind) for kind in kinds)


def _holders(place: Sequence[str]) -> Models:
    """Return the models of the section that a setting of receiver's own is in; none where there is no such section."""
    known = not place[:-1] or place[0] in Settings.model_fields
    return place_of(Settings, place)[1] if known else ()


def _name_sections(raw: dict[str, Any], problems: list[Problem]) -> None:
    """Give each source and destination its name; what cannot have one is noted and left out."""
    for section in ("sources", "destinations"):
        tables = raw.get(section, {})
        if not isinstance(tables, dict):
            problems.append(Problem(section, f"it must be a table of tables: write [{section}.NAME]"))
            del raw[section]
            continue
        for name, table in list(tables.items()):
            if isinstance(table, dict) and _NAME.fullmatch(name):
                table["name"] = name
                continue
            message = (
                "a name has lower-case letters, digits and hyphens, 63 at most (Deepgram refuses underscores)"
            )
            if not isinstance(table, dict):
                message = f"it must be a table: write [{section}.{name}]"
            problems.append(Problem(f"{section}.{name}", message))
            del tables[name]


class _Blame:
    """Finds the environment variable that is to blame: a setting that no file has is looked for in vain there."""

    def __init__(
        self, environ: Mapping[str, str], written: Mapping[str, Any], known: Mapping[str, Any]
    ) -> None:
        self._variables = {".".join(_path_of(name)): name for name in environ if name.startswith(_PREFIX)}
        self._written, self._known = written, known

    def of(self, problem: Problem) -> Problem:
        """Return the problem with the variable in place of the setting, where a variable alone speaks of it."""
        place = problem.where.split(".")
        if problem.message == "is missing":
            place = place[:-1]  # what is there is the section, by a wrong name perhaps
        where = ".".join(place)
        names = [n for path, n in self._variables.items() if path == where or path.startswith(f"{where}.")]
        if not names or _at(self._written, place) is not None:
            return problem
        *above, last = place
        siblings = _at(self._known, above) if problem.message == "is missing" else None
        known = {name for holder in _holders(place) for name in holder.model_fields}
        others = set(siblings) - {last} if siblings else known
        near = get_close_matches(last, others, n=1)
        fix = problem.fix
        if near:
            rest = _path_of(names[0])[len(place) :]
            fix = f"did you mean {_PREFIX}{'__'.join([*above, near[0], *rest]).upper()}?"
        return Problem(names[0], f"{problem.where}: {problem.message}", fix)


def _at(table: Any, place: Sequence[str]) -> Any:
    for part in place:
        table = table.get(part) if isinstance(table, Mapping) else None
    return table


def own_settings(model: type[T], section: SourceSettings | DestinationSettings) -> T:
    """Check the `options` of a source with its provider's model, of a destination with its kind's.

    Raises `SettingsError` naming `sources.NAME.setting` or `destinations.NAME.setting`.
    """
    where = "sources" if isinstance(section, SourceSettings) else "destinations"
    try:
        return model.model_validate(dict(section.options))
    except ValidationError as error:
        raise SettingsError(problems_of(error, model, f"{where}.{section.name}")) from None


# ---------------------------------------------------------------- places


def has_token_secret(settings: Settings) -> bool:
    """Tell whether callback tokens can have been made: by a secret in the settings, or the one of a first start."""
    return bool(settings.tokens.secrets) or Path(settings.data, "token-secret").exists()


def token_secrets(settings: Settings) -> list[str]:
    """Return the secrets of callback tokens and links, oldest first. Raises `ConfigError` when there is none."""
    if settings.tokens.secrets:
        return [secret.get_secret_value() for secret in settings.tokens.secrets]
    path = Path(settings.data, "token-secret")
    try:
        return [path.read_text("ascii").strip()]
    except FileNotFoundError:
        message = (
            f"there is no token secret at {path}: `receiver serve` makes it there; or set tokens.secrets"
        )
        raise ConfigError(message) from None
    except OSError as error:
        raise ConfigError(f"the token secret at {path} cannot be read: {error.strerror}") from None


def made_token_secrets(settings: Settings) -> list[str]:
    """Return the same; where none is set, one is made and kept in the data folder. Raises `ConfigError` when it cannot be."""
    if settings.tokens.secrets:
        return token_secrets(settings)
    path = Path(settings.data, "token-secret")
    try:
        make_folder(path.parent)
        with contextlib.suppress(FileExistsError):
            fresh = path.with_name(f".token-secret-{os.getpid()}-{secrets.token_hex(4)}")
            write_file(fresh, secrets.token_hex(32).encode())
            try:
                os.link(fresh, path)  # whoever is first wins; a half-written secret is never seen
            finally:
                os.unlink(fresh)
        sync_folder(path.parent)  # before a URL is issued that only this secret can prove
        return [path.read_text("ascii").strip()]
    except OSError as error:
        raise ConfigError(
            f"the token secret cannot be kept in {path}: {error.strerror}; "
            "set tokens.secrets, or make the data folder writable"
        ) from None


def postgres_url(settings: Settings) -> str | None:
    """Return the PostgreSQL URL that `[store] url` is, None for another kind of store."""
    url = settings.store.url.get_secret_value() if settings.store.url else ""
    return url if url.startswith(("postgresql://", "postgres://")) else None


def sqlite_path(settings: Settings) -> str:
    """Return the SQLite file that `[store] url` names. Raises `ConfigError` for another kind of store."""
    url = settings.store.url.get_secret_value() if settings.store.url else None
    if url is None:
        return str(Path(settings.data, "receiver.db"))
    if not url.startswith("sqlite:///") or len(url) == len("sqlite:///"):
        raise ConfigError(
            "store.url must begin with postgresql://, or with sqlite:/// (three slashes for a relative path, four for "
            "an absolute)"
        )
    path, asked, parameters = url.removeprefix("sqlite:///").partition("?")
    if asked:
        raise ConfigError(f"store.url: SQLite takes no parameters here: write it without ?{parameters}")
    if path == ":memory:":
        raise ConfigError("store.url: a store in memory would lose what was answered: name a file")
    return path


def on_s3(settings: Settings) -> bool:
    """Tell whether `[blobs] url` names a bucket."""
    return settings.blobs.url is not None and settings.blobs.url.startswith("s3://")


def blob_folder(settings: Settings) -> str:
    """Return the folder that `[blobs] url` names. Raises `ConfigError` for another kind of blob store."""
    url = settings.blobs.url
    if url is None:
        return str(Path(settings.data, "blobs"))
    if not url.startswith("file:///"):
        raise ConfigError(
            "blobs.url must begin with s3:// and a bucket, or with file:/// and an absolute path"
        )
    return url.removeprefix("file://")


def journal_folder(settings: Settings) -> str:
    """Return the journal's folder."""
    return settings.journal.path or str(Path(settings.data, "journal"))


def local_folders(settings: Settings) -> dict[str, str]:
    """Return the folders of this machine that are written to, by the settings that name them. Raises `ConfigError`."""
    folders = {"journal.path": journal_folder(settings)}
    if postgres_url(settings) is None:
        folders["store.url"] = str(Path(sqlite_path(settings)).parent)
    if not on_s3(settings):
        folders["blobs.url"] = blob_folder(settings)
    return folders


def public_base(settings: Settings) -> str:
    """Return the URL under which receiver is reached, without a trailing slash."""
    return settings.public_url.rstrip("/") if settings.public_url else own_base(settings)


def own_base(settings: Settings) -> str:
    """Return the URL under which receiver is reached from its own machine, without a trailing slash."""
    host = settings.server.host
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host  # noqa: S104 - shown, not bound
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{settings.server.port}"
