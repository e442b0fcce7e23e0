"""lab/judge/ against a stand-in server: what it is asked, what it may answer, and what that costs."""

import email.utils
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from config import ModelConfig
from lab import files, judge
from lab.judge import (
    AGE_GROUPS,
    ASKED,
    CRITERIA,
    Address,
    address,
    ask,
    differences,
    estimate,
    kept_grades,
    question,
    read_reply,
    rows,
    table,
)  # fmt: skip
from lab.judge.__main__ import main
from lab.kept import read_section
from lab.saving import save_model
from lab.stories import Decoding, completions_of
from model import GPT
from tokenizer import ByteTokenizer

PROMPTS = ["The cat", "A dog and", "Once upon"]
FEW = Decoding(completions=2, max_new_tokens=6, temperature=1.0, top_p=None)
KEY = "sk-very-secret-0123456789"
NAMES = ["amber", "birch"]  # models: no such word is in any text of theirs


class Judge:
    """A stand-in for an OpenAI-compatible server. `replies` holds what it answers next: a str is the text of a
    completion, bytes are a body, (status, headers, bytes) is an answer; None hangs up. When it is empty, `usual`."""

    def __init__(self):
        self.requests, self.headers, self.replies, self.usual = [], [], [], lambda asked: grade(asked, 7, "C")
        parent = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                parent.requests.append(body)
                parent.headers.append((self.path, dict(self.headers)))
                asked = body["messages"][-1]["content"]
                self.answer(parent.replies.pop(0) if parent.replies else parent.usual(asked))

            def answer(self, reply):
                if reply is None:
                    self.connection.close()
                    return
                if isinstance(reply, str):
                    content = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
                    reply = json.dumps(content | {"usage": {"prompt_tokens": 100, "completion_tokens": 9}}).encode()
                status, headers, raw = reply if isinstance(reply, tuple) else (200, {}, reply)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def grade(asked, score, group):
    return f"Because.\nGroup: {group}" if "Group: X" in asked else f"Because.\nScore: {score}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    waited = []
    monkeypatch.setattr("lab.judge.server.wait", waited.append)
    running = Judge()
    running.waited = waited
    yield running
    running.close()


@pytest.fixture
def where(server):
    return Address(server.url, "wise-model", KEY)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TRAINED_MODELS", tmp_path)
    for module in ("lab.stories.saved", "lab.judge.plan"):  # not SANDBOX_CACHE, where the compiled decoder lies, too
        monkeypatch.setattr(f"{module}.cache_folder", lambda: tmp_path / "cache")
    for part in ("URL", "MODEL", "KEY"):
        monkeypatch.delenv(f"SANDBOX_JUDGE_{part}", raising=False)
    for i, name in enumerate(NAMES):
        torch.manual_seed(i)
        settings = dict(dim=16, num_layers=1, vocab_size=260, max_seq_len=64, num_q_heads=2, num_kv_heads=1)
        model = GPT(ModelConfig(**settings))
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.3)
        save_model(model, ByteTokenizer(), tmp_path / name)
    return tmp_path


def run(names, where, **settings):
    return judge.judge(names, PROMPTS, where=where, decoding=FEW, **{"confirm": True, "at_once": 1, **settings})


def asked(server):
    return [request["messages"][-1]["content"] for request in server.requests]


# ---------------------------------------------------------------- the address


def test_the_environment_names_the_judge(monkeypatch):
    for part in ("URL", "MODEL", "KEY"):
        monkeypatch.delenv(f"SANDBOX_JUDGE_{part}", raising=False)
    assert address() is None
    monkeypatch.setenv("SANDBOX_JUDGE_URL", "http://localhost:8000/v1/")
    with pytest.raises(ValueError, match="SANDBOX_JUDGE_MODEL is not set"):
        address()
    monkeypatch.setenv("SANDBOX_JUDGE_MODEL", "m")
    monkeypatch.setenv("SANDBOX_JUDGE_KEY", f"{KEY}\n")
    found = address()
    assert found.endpoint == "http://localhost:8000/v1/chat/completions"
    assert found.key == KEY
    assert KEY not in repr(found) + str(found)


def test_addresses():
    assert Address("https://a.b/x/chat/completions?v=1", "m").endpoint == "https://a.b/x/chat/completions?v=1"
    assert Address("https://a.b/x?v=1", "m").endpoint == "https://a.b/x/chat/completions?v=1"
    assert "v=1" not in f"{Address('https://a.b/x?v=1', 'm')} {Address('https://a.b/x?v=1', 'm')!r}"
    for url in ("localhost:8000", "ftp://a.b", "https://", ""):
        with pytest.raises(ValueError, match="must begin with http"):
            Address(url, "m")
    with pytest.raises(ValueError, match="must not hold a user or password") as error:
        Address("https://me:hunter2@a.b/v1", "m")
    assert "hunter2" not in str(error.value)
    for url in ("http://localhost:80x/v1", "http://a.b:99999", "http://a.b/v 1", "http://a .b/v1", "http://[::1/v1"):
        with pytest.raises(ValueError, match="a space, a port or another sign that no address has"):
            Address(url, "m")
    with pytest.raises(ValueError, match="no address has"):
        Address("http://a.b/v\u00e4", "m")
    with pytest.raises(ValueError, match="name the model"):
        Address("https://a.b", " ")
    with pytest.raises(ValueError, match="no key has") as error:
        Address("https://a.b", "m", "sk-secret\nX: y")
    assert "sk-secret" not in str(error.value)


def test_without_a_judge(saved):
    with pytest.raises(ValueError, match=r"no judge is set: .* SANDBOX_JUDGE_URL"):
        run(NAMES, None)
    assert kept_grades(NAMES) == {"judge": None, "protocol": judge.PROTOCOL, "models": {}, "differences": []}


# ---------------------------------------------------------------- replies


@pytest.mark.parametrize(
    ("criterion", "reply", "value"),
    [
        ("grammar", "Fine.\nScore: 8", 8), ("grammar", "**Score:** 8/10", 8), ("plot", "10", 10), ("plot", "7 / 10", 7),
        ("grammar", "Score: 3\nNo.\n- score: **10**.\n", 10), ("grammar", "Score: 1", 1),
        ("grammar", "Score: 8.5", None), ("grammar", "Score: 11", None), ("grammar", "0", None),
        ("grammar", "Score: -3", None), ("grammar", "Score: 7-8", None), ("grammar", "Score: 8/5", None),
        ("grammar", "I would give 7 of 10", None), ("grammar", "", None), ("grammar", "Score: N", None),
        ("grammar", "Group: B", None), ("age", "Score: 8", None),
        ("age", "Group: C", "C"), ("age", "Group: C (6-7)", "C"), ("age", "x\n**Age group:** B: 4-5", "B"),
        ("age", "F", "F"),
        ("age", "A child wrote it", None), ("age", "Group: c", None), ("age", "Group: B-C", None), ("age", "G", None),
    ],
)  # fmt: skip
def test_reading_a_reply(criterion, reply, value):
    assert read_reply(criterion, reply) == value


@pytest.mark.parametrize(
    "reply", ["\n" * 100_000, "\n*" * 50_000, f"Group: A:{' ' * 99_000}!", f"Group: A:{' _' * 49_000}!"]
)
def test_no_reply_takes_long_to_read(reply):
    """Of a text as long as one is ever read; it used to take minutes, or years."""
    begun = time.perf_counter()
    assert read_reply("age", reply) is read_reply("plot", reply) is None
    assert time.perf_counter() - begun < 5


def test_questions_ask_one_thing():
    for criterion in CRITERIA:
        text = question(criterion, "Tom {x}", " ran.")
        assert "Tom {x}*** ran." in text
        assert [name for name in CRITERIA if CRITERIA[name] in text] == [criterion]
        assert "Group:" not in text
    text = question("age", "Tom", " ran.")
    assert not any(wording in text for wording in CRITERIA.values())
    assert all(f"{group}: {years}" in text for group, years in AGE_GROUPS.items())


# ---------------------------------------------------------------- one call


def test_what_is_sent(server, where):
    server.replies = ["Score: 4"]
    assert ask(where, [{"role": "user", "content": "hi"}]) == (
        "Score: 4", {"prompt_tokens": 100, "completion_tokens": 9},
    )  # fmt: skip
    path, headers = server.headers[0]
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    sent = server.requests[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("wise-model", 0, 300)
    other = Address(server.url, "m", options={"max_tokens": None, "max_completion_tokens": 9})
    ask(other, [{"role": "user", "content": "hi"}])
    assert "Authorization" not in server.headers[1][1]
    assert set(server.requests[1]) == {"model", "messages", "temperature", "max_completion_tokens"}


@pytest.mark.parametrize("busy", [(429, {}, b"slow down"), (503, {}, b""), (500, {}, b"oops"), None])
def test_a_busy_server_is_asked_again(server, where, busy):
    server.replies = [busy, busy, "Score: 4"]
    assert ask(where, [{"role": "user", "content": "hi"}])[0] == "Score: 4"
    assert server.waited == [1.0, 2.0]


def test_retry_after_is_kept_to(server, where):
    later = email.utils.formatdate(time.time() + 60, usegmt=True)
    server.replies = [
        (429, {"Retry-After": "7"}, b""), (503, {"Retry-After": later}, b""), (429, {"Retry-After": "soon"}, b""), "5",
    ]  # fmt: skip
    ask(where, [{"role": "user", "content": "hi"}])
    assert server.waited[0] == 7
    assert 50 < server.waited[1] <= 60
    assert server.waited[2] == 4
    server.replies = [(429, {"Retry-After": "3600"}, b"quota")]
    with pytest.raises(ConnectionError, match="asks to wait 3600 s: it answered 429: quota"):
        ask(where, [{"role": "user", "content": "hi"}])


def test_a_server_that_stays_broken(server, where):
    server.replies = [(500, {}, b"out of order")] * 10
    with pytest.raises(ConnectionError, match="failed 6 times in a row: it answered 500: out of order"):
        ask(where, [{"role": "user", "content": "hi"}])
    assert len(server.requests) == 6


def test_a_slow_server(server):
    slow = Address(server.url, "m", timeout=0.1)
    server.usual = lambda asked: time.sleep(0.5) or "Score: 3"
    with pytest.raises(ConnectionError, match="failed 6 times in a row: it broke off"):
        ask(slow, [{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {}, f"bad key {KEY}".encode()), r"401: bad key \(key\); check SANDBOX_JUDGE_KEY"),
        ((404, {}, b"no such model"), "404: no such model; check the address"),
        ((400, {}, b"max_tokens is unsupported"), "400: max_tokens is unsupported; .*options="),
        ((307, {"Location": "http://elsewhere.invalid/"}, b""), "307; the address moved"),
        ((302, {"Location": "http://elsewhere.invalid/"}, b""), "302; the address moved"),
        (b"<html>Welcome</html>", "something else than a chat completion .'<html>Welcome"),
        (b'{"error": "none"}', "something else than a chat completion"),
        (b'{"choices": []}', "something else than a chat completion"),
        (b"[1]", "something else than a chat completion"),
        (b"[" * 200_000, "something else than a chat completion"),
        ((401, {}, b"x" * 285 + KEY.encode()), r"401: x{285}\(key\); check"),  # cut behind its beginning
        (b"x" * 185 + KEY.encode(), r"something else than a chat completion .'x{185}\(key\)'"),
    ],
)
def test_what_asking_again_would_not_help(server, where, reply, message):
    server.replies = [reply]
    with pytest.raises(ValueError, match=message) as error:
        ask(where, [{"role": "user", "content": "hi"}])
    assert len(server.requests) == 1
    assert KEY[:8] not in str(error.value)


def test_a_secret_in_the_address_is_not_shown(server):
    server.replies = [(404, {}, f"no page at /v1/chat/completions?key={KEY}".encode())]
    with pytest.raises(ValueError, match=r"404: no page at /v1/chat/completions\?\(key\); check") as error:
        ask(Address(f"{server.url}?key={KEY}", "m"), [{"role": "user", "content": "hi"}])
    assert KEY not in str(error.value)


def test_an_error_that_breaks_off_in_the_middle_of_its_words(server, where):
    """It says 503, promises 80 bytes and sends 3: asked again, like any other."""
    server.replies = [(503, {"Transfer-Encoding": "chunked"}, b"50\r\nabc"), "Score: 4"]
    assert ask(where, [{"role": "user", "content": "hi"}])[0] == "Score: 4"
    server.replies = [(401, {"Transfer-Encoding": "chunked"}, b"50\r\nabc")]
    with pytest.raises(ValueError, match="it answered 401; check SANDBOX_JUDGE_KEY"):
        ask(where, [{"role": "user", "content": "hi"}])


def test_nobody_there(server):
    url = server.url
    server.close()
    with pytest.raises(ConnectionError, match=r"can't be reached .*: is its server running"):
        ask(Address(url, "m"), [{"role": "user", "content": "hi"}])


# ---------------------------------------------------------------- judging


def test_judging_two_models(saved, server, where):
    result = run(NAMES, where, save=True)
    assert len(server.requests) == 2 * 3 * 2 * 5
    for name in NAMES:
        record = result["models"][name]
        assert record["scores"] == {criterion: {"mean": 7, "low": 7, "high": 7} for criterion in CRITERIA}
        assert record["by_prompt"] == {criterion: [7, 7, 7] for criterion in CRITERIA}
        assert record["ages"] == {"A": 0, "B": 0, "C": 1, "D": 0, "E": 0, "F": 0}
        assert (record["unanswered"], record["calls"], record["judge"]) == (0, 30, "wise-model")
        assert read_section(name, "judge") == [json.loads(json.dumps(record))]
    assert not any(difference["told_apart"] for difference in result["differences"])


def test_the_judge_is_blind_and_the_order_shuffled(saved, server, where):
    run(NAMES, where)
    texts = asked(server)
    assert not any(name in json.dumps(request) for request in server.requests for name in NAMES)
    expected = {
        name: [
            question(criterion, PROMPTS[story["prompt"]], story["text"])
            for story in completions_of(name, PROMPTS, FEW)
            for criterion in ASKED
        ]
        for name in NAMES
    }
    assert sorted(texts) == sorted(expected["amber"] + expected["birch"])
    whose = ["amber" if text in expected["amber"] else "birch" for text in texts]
    assert sum(a != b for a, b in zip(whose, whose[1:])) > 10
    assert all(sum(text.count(wording) for wording in CRITERIA.values()) == ("Score: N" in text) for text in texts)


def test_differences_are_paired_by_prompt(saved, server, where):
    """birch gets one more for its plots than amber on every prompt, however hard these are."""
    hard = dict(zip(PROMPTS, (2, 5, 8)))
    plots = {
        question("plot", PROMPTS[s["prompt"]], s["text"]): hard[PROMPTS[s["prompt"]]] + (name == "birch")
        for name in NAMES
        for s in completions_of(name, PROMPTS, FEW)
    }
    server.usual = lambda asked: grade(asked, plots.get(asked, 5), "B")
    result = run(NAMES, where)
    assert result["models"]["amber"]["by_prompt"]["plot"] == [2, 5, 8]
    found = {difference["criterion"]: difference for difference in result["differences"]}
    assert found["plot"] | {"sentence": ""} == {
        "a": "amber", "b": "birch", "criterion": "plot", "mean": -1, "low": -1, "high": -1, "told_apart": True,
        "prompts": 3, "sentence": "",
    }  # fmt: skip
    assert found["plot"]["sentence"] == "plot: birch is better than amber by 1.00 (1.00 to 1.00) (95 %, 3 prompts)"
    assert found["grammar"]["sentence"].startswith("grammar: no difference beyond noise between amber and birch")
    spread = result["models"]["amber"]["scores"]["plot"]
    assert spread["low"] < 4 < 6 < spread["high"]


def test_what_was_judged_otherwise_is_not_compared(saved, server, where):
    records = run(NAMES, where)["models"]
    assert differences(records)
    assert differences(records | {"birch": records["birch"] | {"judge": "another"}}) == []


def test_a_kill_costs_no_answer(saved, server, where):
    """The server dies at the fifth call; the second run asks only what is missing, also behind a torn line."""
    count = iter(range(10**6))
    server.usual = lambda asked: grade(asked, 7, "C") if next(count) < 4 else (401, {}, b"expired")
    with pytest.raises(ValueError, match="expired"):
        run(NAMES, where)
    first = asked(server)[:4]
    (journal,) = (saved / "cache" / "judge").iterdir()
    lines = journal.read_bytes().splitlines()
    assert [json.loads(line)["question"] for line in lines] == first
    assert json.loads(lines[0])["reply"].startswith("Because.")
    with open(journal, "ab") as file:
        file.write(lines[0][:40])  # killed while it wrote
    assert estimate(NAMES, PROMPTS, where=where, decoding=FEW)["calls"] == 56
    server.usual = lambda asked: grade(asked, 7, "C")
    server.requests.clear()
    result = run(NAMES, where)
    assert len(server.requests) == 56
    assert not set(asked(server)) & set(first)
    assert result["models"]["amber"]["unanswered"] == 0
    server.requests.clear()
    assert run(NAMES, where, confirm=False) == result
    assert server.requests == []


def test_garbage_is_asked_once_more_and_then_counted(saved, server, where):
    silent = question("grammar", PROMPTS[0], completions_of("amber", PROMPTS, FEW)[0]["text"])
    server.usual = lambda asked: "Lovely!" if asked == silent else grade(asked, 7, "C")
    record = run(["amber"], where)["models"]["amber"]
    assert asked(server).count(silent) == 2
    assert record["unanswered"] == pytest.approx(1 / 30)
    assert record["by_prompt"]["grammar"] == [7, 7, 7]
    server.requests.clear()
    run(["amber"], where)
    assert server.requests == []  # two replies without a grade settle it


def test_prompts_without_any_grade_are_left_out(saved, server, where):
    server.usual = lambda asked: "No." if PROMPTS[1] in asked and "Score: N" in asked else grade(asked, 7, "C")
    record = run(["amber"], where)["models"]["amber"]
    assert record["by_prompt"]["plot"] == [7, None, 7]
    assert record["unanswered"] == pytest.approx(8 / 30)
    assert record["scores"]["plot"]["mean"] == 7


def test_a_judge_that_never_grades_is_stopped(saved, server, where):
    server.usual = lambda asked: "As a model, I cannot."
    with pytest.raises(ValueError, match=r"none of the first 10 questions got a grade .* I cannot"):
        run(NAMES, where)
    assert len(server.requests) == 20


def test_grades_of_an_earlier_call_do_not_keep_a_silent_judge_going(saved, server, where):
    run(["amber"], where)
    server.usual = lambda asked: "As a model, I cannot."
    with pytest.raises(ValueError, match=r"none of the first 10 questions got a grade .* I cannot"):
        run(NAMES, where)


def test_nothing_is_asked_unconfirmed(saved, server, where):
    with pytest.raises(ValueError, match=r"wise-model would be asked 60 calls, about [\d,]+ tokens in and 3,600 out"):
        run(NAMES, where, confirm=False)
    cost = estimate(NAMES, PROMPTS, where=where, decoding=FEW, price_in=2.0, price_out=10.0)
    assert server.requests == []
    run(NAMES, where)
    characters = sum(len(message["content"]) for request in server.requests for message in request["messages"])
    assert cost["tokens_in"] == characters // 4 + 12 * 60
    assert cost["cost"] == pytest.approx((cost["tokens_in"] * 2 + 3600 * 10) / 1e6)
    assert estimate(NAMES, PROMPTS, where=where, decoding=FEW)["answered"] == 60
    assert estimate(NAMES, PROMPTS, decoding=FEW)["calls"] == 60  # no judge is set: nothing is answered yet


def test_the_most_that_replies_can_take(saved, server, where):
    """As long as the request allows, and twice where no grade has come yet."""
    ask_for = lambda **options: estimate(  # noqa: E731
        ["amber"], PROMPTS, where=Address(server.url, "wise-model", KEY, options=options), decoding=FEW
    )
    assert ask_for()["tokens_out_at_most"] == 30 * 2 * 300
    assert ask_for(max_tokens=2000)["tokens_out_at_most"] == 30 * 2 * 2000
    assert ask_for(max_tokens=None, max_completion_tokens=900)["tokens_out_at_most"] == 30 * 2 * 900
    unlimited = ask_for(max_tokens=None)
    assert unlimited["tokens_out_at_most"] is None and "1,800 out (without a limit)" in unlimited["sentence"]
    replies = iter(["Lovely!"] * 4)
    server.usual = lambda asked: next(replies, (401, {}, b"expired"))
    with pytest.raises(ValueError, match="expired"):
        run(["amber"], where)  # two questions are settled without a grade
    assert ask_for()["tokens_out_at_most"] == 28 * 2 * 300
    (journal,) = (saved / "cache" / "judge").iterdir()
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]))
    assert ask_for()["tokens_out_at_most"] == (28 * 2 + 1) * 300


def test_fewer_completions(saved, server, where):
    record = run(["amber"], where, completions=1)["models"]["amber"]
    assert record["calls"] == len(server.requests) == 15
    with pytest.raises(ValueError, match="completions=3 must be from 1 to the 2"):
        run(["amber"], where, completions=3)


def test_what_is_kept_needs_no_judge(saved, server, where):
    result = run(NAMES, where, save=True)
    for path in (saved / "cache" / "judge").iterdir():
        path.unlink()
    server.requests.clear()
    assert run(NAMES, where, confirm=False)["models"] == json.loads(json.dumps(result["models"]))
    assert server.requests == []
    assert kept_grades(NAMES, "list") == json.loads(json.dumps(result))
    other = Address(server.url, "other-model")
    assert estimate(NAMES, PROMPTS, where=other, decoding=FEW)["calls"] == 60


def test_the_key_is_in_no_file(saved, server, where, monkeypatch, capsys):
    server.usual = lambda asked: f"Your key is {KEY}.\n" + grade(asked, 7, "C")
    run(NAMES, where, save=True)
    server.usual = lambda asked: (403, {}, f"no right for {KEY}".encode())
    with pytest.raises(ValueError, match="403") as error:
        run(NAMES, Address(server.url, "second-model", KEY))
    assert KEY not in str(error.value)
    written = [path for path in saved.rglob("*") if path.is_file()]
    assert len(written) > 8
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in "".join(capsys.readouterr())


def test_several_calls_at_once(saved, server, where):
    one = run(NAMES, where)
    for path in (saved / "cache" / "judge").iterdir():
        path.unlink()
    under_way, most, lock = [0], [0], threading.Lock()

    def count(asked):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.01)
        with lock:
            under_way[0] -= 1
        return grade(asked, 7, "C")

    server.usual = count
    assert run(NAMES, where, at_once=5) == one
    assert 2 <= most[0] <= 5
    assert len(server.requests) == 120
    with pytest.raises(ValueError, match="at_once=0 must be at least 1"):
        run(NAMES, where, at_once=0)


def test_a_failure_among_several_costs_no_answer(saved, server, where):
    count = iter(range(10**6))
    server.usual = lambda asked: (401, {}, b"expired") if next(count) == 5 else grade(asked, 7, "C")
    with pytest.raises(ValueError, match="expired"):
        run(NAMES, where, at_once=4)
    assert len(server.requests) == 8  # two batches, of which one call failed
    assert estimate(NAMES, PROMPTS, where=where, decoding=FEW)["answered"] == 7


def test_strange_replies_can_be_kept(saved, server, where):
    """Half a character, no text at all, a text without measure, counts that are no numbers: paid, so written down."""
    count = iter(range(10**6))

    def strange(asked):
        good = grade(asked, 7, "C")
        content = ["\ud83d " + good, None, "x" * 2_000_000 + "\n" + good, good][next(count) % 4]
        return json.dumps(
            {"choices": [{"message": {"content": content}}], "usage": {"prompt_tokens": float("nan")}}
        ).encode()

    server.usual = strange
    record = run(["amber"], where, completions=1)["models"]["amber"]
    assert record["scores"]["plot"]["mean"] == 7
    assert record["unanswered"] == 0
    server.requests.clear()
    assert run(["amber"], where, completions=1)["models"]["amber"] == record
    assert server.requests == []


def test_a_strange_journal_is_said(saved, server, where):
    run(["amber"], where)
    (journal,) = (saved / "cache" / "judge").iterdir()
    with open(journal, "a") as file:
        file.write('{"other": 1}\n')
    with pytest.raises(ValueError, match="is no reply: take that line out"):
        run(["amber"], where)


# ---------------------------------------------------------------- to look at


def test_tables(saved, server, where):
    result = run(NAMES, where)
    line = rows(result)[0]
    assert (line["model"], line["plot"], line["C: 6-7"], line["unanswered"]) == (
        "amber", "7.00 (7.00 to 7.00)", "100%", "0.0%",
    )  # fmt: skip
    assert list(table(result).index) == NAMES


def raise_end_of_file(_):
    raise EOFError


def test_terminal(saved, server, monkeypatch, capsys):
    (saved / "p.txt").write_text("The cat\nA dog\n")
    arguments = ["amber", "--prompts", str(saved / "p.txt"), "--completions", "1"]
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked without a judge"))
    with pytest.raises(SystemExit, match="no judge is set"):
        main(arguments)
    assert capsys.readouterr().out == ""
    main([*arguments, "--estimate", "--price-in", "1", "--price-out", "1"])
    assert "10 calls, about" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no judge is set"):
        main([*arguments, "--yes"])
    monkeypatch.setenv("SANDBOX_JUDGE_URL", server.url)
    monkeypatch.setenv("SANDBOX_JUDGE_MODEL", "wise-model")
    monkeypatch.setattr("builtins.input", lambda _: "n")
    with pytest.raises(SystemExit, match="nothing was asked"):
        main(arguments)
    monkeypatch.setattr("builtins.input", raise_end_of_file)
    with pytest.raises(SystemExit, match="nothing was asked"):
        main(arguments)
    assert server.requests == []
    main([*arguments, "--yes", "--save"])
    assert "| amber | 7.00" in capsys.readouterr().out
    assert len(read_section("amber", "judge")) == 1
