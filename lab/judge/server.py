"""The server that judges: its address, and one call to it over the network."""

import email.utils
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

MAX_REPLY_TOKENS = 300  # what a reply may take at most, unless an Address has options that say otherwise
LIMITS = ("max_tokens", "max_completion_tokens")  # fields of a request that say it
LONGEST_REPLY = 100_000  # characters, from its end, that are read of a server without measure
TRIES = 6  # of a call that meets a busy or broken server
LONGEST_WAIT = 300.0  # seconds; a server that asks for more is asked again another day
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # answers that may be another one later
HOW = (
    "no judge is set: give the address of a server that speaks OpenAI's chat completions, "
    "judge(..., where=Address(url, model, key)), or the environment variables SANDBOX_JUDGE_URL "
    "(such as http://localhost:8000/v1), SANDBOX_JUDGE_MODEL and, if it wants one, SANDBOX_JUDGE_KEY"
)
wait = time.sleep


@dataclass(frozen=True)
class Address:
    """An OpenAI-compatible server and the model on it that judges. Raises ValueError for what can't be one."""

    url: str = field(repr=False)  # up to /v1 or so; /chat/completions is added where it is missing
    model: str
    key: str = field(default="", repr=False, compare=False)  # sent as a bearer token and nowhere else
    timeout: float = 60.0  # seconds that a reply may take
    options: dict = field(default_factory=dict)  # further fields of each request, kept with the grades; None: leave out

    def __post_init__(self):
        try:
            parts = urlsplit(self.url)
            usable = parts.port != 0  # ValueError where it is no number
        except ValueError:
            usable = False
        if not usable or " " in parts.netloc or not re.fullmatch(r"[!-~]*", parts.path + parts.query):
            raise ValueError("url: the judge's address holds a space, a port or another sign that no address has")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url: the judge's address must begin with http:// or https:// and name a host")
        if parts.username or parts.password:
            raise ValueError("url: the judge's address must not hold a user or password; give the key as key=")
        if not self.model.strip():
            raise ValueError("model='': name the model that judges, as its server calls it")
        if not re.fullmatch(r"[!-~]*", self.key):
            raise ValueError("key: it holds a space, a line end or another sign that no key has (it is not shown here)")

    @property
    def endpoint(self) -> str:
        """The whole address that is posted to."""
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        path = path if path.endswith("/chat/completions") else f"{path}/chat/completions"
        return parts._replace(path=path, fragment="").geturl()

    def __str__(self) -> str:
        """For messages: what stands behind a ? may be a secret."""
        return self.endpoint.partition("?")[0]

    @property
    def max_reply_tokens(self) -> int | None:
        """What the server is told that a reply may take at most; None: nothing."""
        limits = {"max_tokens": MAX_REPLY_TOKENS} | self.options
        return min((n for key in LIMITS if isinstance(n := limits.get(key), int)), default=None)

    def hide_key(self, text: str) -> str:
        """The whole text that a server sent without the secrets that it was sent; cut it behind that, not before."""
        for secret in (self.key, urlsplit(self.url).query):
            text = text.replace(secret, "(key)") if len(secret) >= 8 else text
        return text


def address() -> Address | None:
    """The judge that the environment names, or None if it names none.

    Raises: ValueError if SANDBOX_JUDGE_URL is set and can't be one, or SANDBOX_JUDGE_MODEL is missing beside it.
    """
    url, model, key = (os.environ.get(f"SANDBOX_JUDGE_{part}", "").strip() for part in ("URL", "MODEL", "KEY"))
    if not url:
        return None
    if not model:
        raise ValueError("SANDBOX_JUDGE_MODEL is not set beside SANDBOX_JUDGE_URL: name the model that judges")
    return Address(url, model, key)


def ask(where: Address, messages: Sequence[dict]) -> tuple[str, dict]:
    """(the reply's text, the tokens that the server counted), asked again while the server is busy or breaks off.

    Raises: ConnectionError for a server that can't be reached or stays busy; ValueError for a wrong key, address, model
    or field, and for an answer of another form.
    """
    body = {"model": where.model, "messages": list(messages), "temperature": 0, "max_tokens": MAX_REPLY_TOKENS}
    body = {name: value for name, value in (body | where.options).items() if value is not None}
    for tries in range(1, TRIES + 1):
        problem, seconds = "", 0.0
        try:
            return _read_answer(where, _post(where, body))
        except urllib.error.HTTPError as error:
            problem, seconds = _http_problem(where, error), _retry_after(error)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, TimeoutError | ConnectionResetError | BrokenPipeError):
                raise ConnectionError(
                    f"the judge at {where} can't be reached ({error.reason}): is its server running, the address right?"
                ) from None
            problem = f"no connection ({error.reason})"
        except (OSError, http.client.HTTPException) as error:
            problem = f"it broke off ({type(error).__name__})"
        if tries < TRIES:
            seconds = max(seconds, 2.0 ** (tries - 1))
            if seconds > LONGEST_WAIT:
                raise ConnectionError(
                    f"the judge at {where} asks to wait {seconds:.0f} s: {problem}. Run it again then"
                )
            wait(seconds)
    raise ConnectionError(f"the judge at {where} failed {TRIES} times in a row: {problem}. Run it again later")


def _post(where: Address, body: dict) -> bytes:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {where.key}"} if where.key else {})
    request = urllib.request.Request(where.endpoint, json.dumps(body).encode(), headers)
    with _open(request, timeout=where.timeout) as answer:
        return answer.read()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host: it is an error instead."""

    def redirect_request(self, *_):
        return None


_open = urllib.request.build_opener(_NoRedirects).open


def _http_problem(where: Address, error: urllib.error.HTTPError) -> str:
    """In words what the server answered. Raises ValueError where asking again would not help."""
    try:
        content = error.read(100_000)
    except (OSError, http.client.HTTPException):  # it broke off in the middle of its words
        content = b""
    said = where.hide_key(" ".join(content.decode("utf-8", errors="replace").split()))[:300]
    problem = f"it answered {error.code}" + (f": {said}" if said else "")
    if error.code in BUSY:
        return problem
    remedy = {
        401: "check SANDBOX_JUDGE_KEY",
        403: "check SANDBOX_JUDGE_KEY and what it is allowed",
        404: "check the address (does it end in /v1?) and the model's name",
        400: "where it does not know a field, Address(..., options={'max_tokens': None}) leaves one out",
    }.get(error.code, "the address moved: set the new one" if 300 <= error.code < 400 else "see the server's own words")
    raise ValueError(f"the judge at {where} refuses: {problem}; {remedy}") from None


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait, by a number or a date; 0 if it does not say."""
    value = error.headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _read_answer(where: Address, content: bytes) -> tuple[str, dict]:
    try:
        answer = json.loads(content)
        reply = answer["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        said = where.hide_key(content.decode("utf-8", errors="replace"))[:200]
        raise ValueError(
            f"the judge at {where} answered something else than a chat completion ({said!r}): is the address right?"
        ) from None
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = {n: usage[n] for n in ("prompt_tokens", "completion_tokens") if isinstance(usage.get(n), int)}
    return where.hide_key(reply if isinstance(reply, str) else "")[-LONGEST_REPLY:], counts
