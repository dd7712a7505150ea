"""What the environment sets, in variables that begin with `WHISPER_`: one frozen object, checked once."""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import platformdirs
import pydantic
from pydantic import ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from whisperlib.errors import OptionError
from whisperlib.options import DEFAULT_PROFILE, Profile

PREFIX = "WHISPER_"
MODEL_NAMES = ("micro", "tiny", "base", "small", "medium", "large-v3-turbo", "large-v3")
# One revision, so that the pinned sizes and sums stay right.
UPSTREAM = "https://huggingface.co/ggerganov/whisper.cpp/resolve/5359861c739e955e79d9a303bcbc70fb988958b1"
MAX_SHOWN_CHARACTERS = 100  # of a refused value, in the message
MAX_KEEP_ALIVE_SECONDS = 604_800

Quantization = Literal["auto", "f16", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1", "q4_0"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)
Isolation = Literal["none", "process"]

Words = Annotated[tuple[str, ...], NoDecode]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode]

_SECRET_FIELDS = {"admin_keys", "api_keys", "llm_api_key"}
_BUDGET_EXAMPLES = "6GB, 1.5GiB, 500MB"
_PLACE = re.compile(r"[/.~][^\0]*")  # a path, told from a mistyped word or URL
_SECRETS = re.compile(r"(?<=//)\S*@|\?\S*")


def _setting(unit: str, description: str, *, allowed: str = "", **field: Any) -> Any:
    """Declare a field. `allowed` says what it may be where its type and its bounds do not."""
    return Field(description=description, json_schema_extra={"unit": unit, "allowed": allowed}, **field)


def _user_models() -> Path:
    return platformdirs.user_data_path("whisperlib", appauthor=False) / "models"


def user_cache_path() -> Path:
    """Return the user's cache directory, which need not be there. That of a user without a home cannot be made."""
    try:
        directory = platformdirs.user_cache_path("whisperlib", appauthor=False)
    except RuntimeError:  # other versions of it leave the ~ where it is
        directory = Path("~")
    return directory if directory.is_absolute() else Path(os.devnull, "whisperlib")


class Settings(BaseSettings):
    """The settings; each comes from the variable of its name in capitals after `WHISPER_`.

    An empty variable counts as unset. `unit` and `allowed` of each field are in its JSON schema, and
    docs/settings.md lists them all. Raises OptionError, which names the variable, its value and what is allowed.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        str_strip_whitespace=True,
    )

    model_size: str = _setting(
        "name or path",
        "Model that is used when none is named.",
        allowed=f"{', '.join(MODEL_NAMES)}, or a path with a /",
        default="small",
    )
    model_root: Path = _setting(
        "path", "Directory of the model directories.", allowed="a path", default_factory=_user_models
    )
    artifact_url: str = _setting(
        "URL",
        "Address below which the model files are fetched.",
        allowed="an http or https URL without a query",
        default=UPSTREAM,
        repr=False,  # a mirror's may hold a password
    )
    quantization: Quantization = _setting(
        "weight type",
        "Weight type, also called compute type; `auto` takes the best file that is there.",
        default="auto",
    )
    device: Literal["auto", "cpu", "cuda"] = _setting("device", "Where the model runs.", default="auto")
    encoder: Literal["auto", "ggml", "openvino"] = _setting(
        "encoder",
        "What runs the encoder on a CPU; `auto`: OpenVINO where it is installed and was made for the model.",
        default="auto",
    )
    encoder_precision: Literal["auto", "bf16", "f32", "int8"] = _setting(
        "precision", "What OpenVINO computes in; `auto`: bf16 where the CPU has it, else f32.", default="auto"
    )
    lib_dir: Path | None = _setting(
        "path", "Directory of the native libraries; unset, they are searched.", allowed="a path", default=None
    )
    isolation: Isolation = _setting(
        "place",
        "Where the server and voice agents have the model; `process`: in one of its own, which may crash and return.",
        default="none",
    )
    profile: Profile = _setting(
        "profile", "Profile of requests that name none: defaults of their options.", default=DEFAULT_PROFILE
    )
    preload: Words = _setting(
        "names",
        "Models that the server loads at its start, beside the one of `WHISPER_MODEL_SIZE`.",
        allowed="names of models separated by commas",
        default=(),
    )
    pinned: Words = _setting(
        "names",
        "Models that stay in memory once they are loaded; unset: the one of `WHISPER_MODEL_SIZE`.",
        allowed="names of models separated by commas",
        default=(),
    )
    memory_budget: ByteSize | None = _setting(
        "bytes",
        "Memory that loaded models may take together; those that were not used for longest make room; unset: any.",
        allowed=f"a number above 0 with a unit or without, as in {_BUDGET_EXAMPLES}",
        default=None,
    )
    keep_alive_seconds: float = _setting(
        "seconds",
        "A model that nobody has used for so long is unloaded, unless it is pinned; 0: never.",
        default=1800.0,
        ge=0,
        le=MAX_KEEP_ALIVE_SECONDS,
    )
    cache: str = _setting(
        "place",
        "Where results are kept, to answer the same request at once; `files`: the user's cache directory; `auto`: that "
        "in a server, else nowhere.",
        allowed="auto, off, files, a path that begins with /, . or ~, or a redis:// or rediss:// URL",
        default="auto",
        repr=False,  # the URL may hold a password
    )
    cache_bytes: int = _setting(
        "bytes",
        "The results in files take so much; those that were not used for longest go first.",
        default=268_435_456,
        ge=1024,
        le=1_000_000_000_000,
    )
    cache_seconds: int = _setting(
        "seconds", "A result is forgotten so long after it was made.", default=2_592_000, ge=1, le=315_360_000
    )
    batches: str = _setting(
        "place",
        "Where `POST /batches` keeps its lists, uploads and results; `auto`: the user's state directory.",
        allowed="auto, off, or a path that begins with /, . or ~",
        default="auto",
    )
    batch_max_items: int = _setting("items", "A batch may have so many.", default=1000, ge=1, le=100_000)
    batch_max_queued: int = _setting(
        "items",
        "So many may wait, of all batches; a batch with which there were more is refused.",
        default=10_000,
        ge=1,
        le=10_000_000,
    )
    batch_max_bytes: int = _setting(
        "bytes",
        "A batch is refused where what is kept of all, uploads and results, would take more.",
        default=10_737_418_240,
        ge=1024,
        le=1_000_000_000_000_000,
    )
    batch_keep_seconds: int = _setting(
        "seconds", "A batch is forgotten so long after its end.", default=604_800, ge=1, le=315_360_000
    )
    threads: int = _setting("threads", "Threads of one request; 0: as the cgroup allows.", default=0, ge=0, le=512)
    concurrency: int = _setting("requests", "Requests that run at once; 0: as the cores allow.", default=0, ge=0, le=64)
    measure_threads: bool = _setting(
        "switch",
        "Share the cores by a short measurement, once per machine, build, model and encoder, "
        "where neither of the two is set.",
        allowed="true or false",
        default=True,
    )
    max_audio_seconds: float = _setting("seconds", "Longer audio is refused.", default=14_400.0, ge=0.1, le=86_400)
    download_timeout_seconds: float = _setting(
        "seconds", "A model host that is silent for so long has failed.", default=30.0, ge=0.1, le=3600
    )
    download_retries: int = _setting("retries", "Further tries of a download that broke off.", default=5, ge=0, le=100)
    log_level: Literal["auto", "DEBUG", "INFO", "WARNING", "ERROR"] = _setting(
        "level", "What is logged; `auto`: warnings by the commands, INFO by the server.", default="auto"
    )
    log_format: Literal["text", "json"] = _setting("format", "How the server writes its log.", default="text")
    host: str = _setting(
        "address", "Where the server listens.", allowed="an address or a host name", default="127.0.0.1"
    )
    port: int = _setting("TCP port", "Where the server listens.", default=8000, ge=1, le=65_535)
    http_threads: int = _setting(
        "threads",
        "Connections that the server answers at once; four of them are kept for the probes.",
        default=64,
        ge=8,
        le=1024,
    )
    api_keys: Secrets = _setting(
        "keys",
        "Keys of which a request must bear one. Beyond loopback they must be set; `none` serves everybody.",
        allowed="words separated by commas, or none",
        default=(),
        repr=False,
    )
    admin_keys: Secrets = _setting(
        "keys",
        "Keys of which a call that loads and unloads models must bear one; unset: all such calls are refused.",
        allowed="words separated by commas",
        default=(),
        repr=False,
    )
    cors_origins: Words = _setting(
        "origins",
        "Web pages of these origins may call the server.",
        allowed="origins separated by commas, or *",
        default=(),
    )
    url_allow: Words = _setting(
        "hosts",
        "Hosts and networks that `audio_url` may name though they are not public.",
        allowed="names, addresses and networks separated by commas",
        default=(),
    )
    max_fetches: int = _setting("fetches", "Audio files that are fetched at once.", default=8, ge=1, le=256)
    fetch_timeout_seconds: float = _setting(
        "seconds", "An audio file that is not fetched by then has failed.", default=60.0, ge=0.1, le=3600
    )
    max_body_bytes: int = _setting(
        "bytes", "Larger uploads and fetched files are refused.", default=536_870_912, ge=1024, le=1_000_000_000_000
    )
    header_timeout_seconds: float = _setting(
        "seconds", "A request whose head is not there by then is refused.", default=10.0, ge=0.1, le=600
    )
    body_timeout_seconds: float = _setting(
        "seconds", "A request whose body is not there by then is refused.", default=300.0, ge=0.1, le=86_400
    )
    write_timeout_seconds: float = _setting(
        "seconds", "A client that takes nothing of its answer for so long is dropped.", default=60.0, ge=0.1, le=3600
    )
    max_wait_seconds: float = _setting(
        "seconds", "A request that would wait longer for its turn is refused with 429.", default=120.0, ge=0, le=86_400
    )
    request_timeout_seconds: float = _setting(
        "seconds", "Deadline of a request that names no earlier one.", default=3600.0, ge=0.1, le=604_800
    )
    short_audio_seconds: float = _setting(
        "seconds", "Audio up to this length has a lane of its own.", default=60.0, ge=0, le=86_400
    )
    shutdown_seconds: float = _setting(
        "seconds", "What runs when the server is told to stop may take so long.", default=25.0, ge=0, le=86_400
    )
    failure_delay_seconds: float = _setting(
        "seconds", "So long a server without a model still says why before it exits.", default=5.0, ge=0, le=600
    )
    keep_results_seconds: float = _setting(
        "seconds",
        "So long the server remembers a result, for who has its id to ask for it again; 0: not at all.",
        default=3600.0,
        ge=0,
        le=604_800,
    )
    keep_results_max: int = _setting(
        "results",
        "The server remembers so many; those that nobody asked for for longest go first; 0: none.",
        default=1000,
        ge=0,
        le=1_000_000,
    )
    llm_base_url: str | None = _setting(
        "URL",
        "Address of OpenAI's chat API, before `/chat/completions`, where transcripts are cleaned up; unset: nowhere.",
        allowed="an http or https URL without a query",
        default=None,
        repr=False,  # it may hold a password
    )
    llm_model: str | None = _setting(
        "name", "Language model that is asked there.", allowed="the name that its server knows it by", default=None
    )
    llm_temperature: float = _setting("temperature", "Temperature of the language model.", default=0.3, ge=0, le=2)
    llm_timeout: float = _setting(
        "seconds", "Longest wait for the answer to one piece of a text (3000 bytes).", default=60.0, ge=0.1, le=3600
    )
    llm_api_key: SecretStr | None = _setting(
        "key",
        "Key of the language model's server, sent as `Authorization: Bearer KEY`.",
        allowed="a word",
        default=None,
        repr=False,
    )

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise OptionError(_first_complaint(error)) from None

    @pydantic.field_validator("model_size")
    @classmethod
    def _known_model(cls, value: str) -> str:
        if value.lower() in MODEL_NAMES:
            return value.lower()
        if "/" not in value:
            raise ValueError("unknown name")
        return value

    @pydantic.field_validator("artifact_url", "llm_base_url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        # To read the port raises ValueError where it is no number: a password with a slash looks like that.
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0 or re.search(r"\s", value):
            raise ValueError("not a web address")
        if "?" in value or "#" in value:
            raise ValueError("something follows it")
        return value.rstrip("/")

    @pydantic.field_validator("cache")
    @classmethod
    def _cache_place(cls, value: str) -> str:
        if value.lower() in {"auto", "off", "files"}:
            return value.lower()
        if _PLACE.fullmatch(value):
            return str(cls._home(Path(value)))
        parts = urlsplit(value)
        if parts.scheme not in {"redis", "rediss"} or not parts.hostname or parts.port == 0 or re.search(r"\s", value):
            raise ValueError("not a place")
        return value

    @pydantic.field_validator("batches")
    @classmethod
    def _batches_place(cls, value: str) -> str:
        if value.lower() in {"auto", "off"}:
            return value.lower()
        if not _PLACE.fullmatch(value):
            raise ValueError("not a place")
        return str(cls._home(Path(value)))

    @pydantic.field_validator("model_root", "lib_dir", mode="before")
    @classmethod
    def _one_path(cls, value: object) -> object:
        if isinstance(value, str):
            value = value.strip()
        if value == "" or "\0" in str(value):
            raise ValueError("not a path")
        return value

    @pydantic.field_validator("model_root", "lib_dir")
    @classmethod
    def _home(cls, value: Path | None) -> Path | None:
        try:
            return value and value.expanduser().absolute()
        except RuntimeError:
            raise ValueError("no such home directory") from None

    @pydantic.field_validator(
        "quantization",
        "device",
        "encoder",
        "encoder_precision",
        "isolation",
        "profile",
        "log_level",
        "log_format",
        mode="before",
    )
    @classmethod
    def _any_case(cls, value: object, info: pydantic.ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        value = value.strip().lower()
        return value.upper() if info.field_name == "log_level" and value != "auto" else value

    @pydantic.field_validator("api_keys", "admin_keys", "cors_origins", "url_allow", "preload", "pinned", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        words = tuple(word.strip() for word in value.split(",") if word.strip())
        if not words or any(re.search(r"\s", word) for word in words):
            raise ValueError("not words separated by commas")
        return words

    @pydantic.field_validator("preload", "pinned")
    @classmethod
    def _known_models(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        lowered = tuple(dict.fromkeys(name.lower() for name in names))
        if not set(lowered) <= set(MODEL_NAMES):
            raise ValueError("unknown name")
        return lowered

    @pydantic.field_validator("memory_budget", mode="wrap")
    @classmethod
    def _some_memory(cls, value: object, read: pydantic.ValidatorFunctionWrapHandler) -> object:
        try:
            size_bytes = read(value)
        except OverflowError:
            raise ValueError("more than a number can say") from None
        if size_bytes is not None and size_bytes <= 0:
            raise ValueError("no memory")
        return size_bytes

    @pydantic.field_validator("llm_api_key")
    @classmethod
    def _one_word(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[!-~]+", value.get_secret_value()):
            raise ValueError("not what a header can hold")
        return value

    @pydantic.field_validator("host")
    @classmethod
    def _host_name(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.:%-]+", value):
            raise ValueError("not an address")
        return value


@cache
def get_settings() -> Settings:
    """Return the settings, read at the first call; `get_settings.cache_clear()` has them read anew."""
    return Settings()


def allowed(field: str) -> str:
    """Say what a setting may be: "a whole number, 0 to 512", "auto, cpu, cuda"."""
    schema = Settings.model_json_schema()["properties"][field]
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if "minimum" in schema:
        if schema["type"] == "integer":
            return f"a whole number, {schema['minimum']} to {schema['maximum']}"
        return f"a number, {schema['minimum']:g} to {schema['maximum']:g}"
    return str(schema["allowed"])


def without_credentials(text: str) -> str:
    """Return `text` without users and passwords in its URLs, and without their queries, which may be signatures."""
    return _SECRETS.sub("", text)


def _first_complaint(error: pydantic.ValidationError) -> str:
    details = error.errors()[0]
    field = str(details["loc"][0])
    if details["type"] == "extra_forbidden":
        return f"unknown setting {field!r}: the settings are {', '.join(sorted(Settings.model_fields))}"
    hidden = field in _SECRET_FIELDS or (field == "cache" and "@" in str(details["input"]))
    shown = "(hidden)" if hidden else repr(without_credentials(str(details["input"])))
    if len(shown) > MAX_SHOWN_CHARACTERS:
        shown = f"{shown[:MAX_SHOWN_CHARACTERS]}…"
    return f"{PREFIX}{field.upper()} = {shown}: give {allowed(field)}"
