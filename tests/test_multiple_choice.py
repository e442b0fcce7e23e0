"""Multiple choice: scores by hand, seams where tokens merge, the five published formats and their disrepair."""

import json
import math
import random

import pytest
import torch
from test_minimal_pairs import random_gpt
from toy_models import Bigram, Letters

from lab import files
from lab.evaluation import multiple_choice
from lab.likelihood import log_likelihoods
from lab.multiple_choice import Question, first_scored, measured, multiple_choice_of, read_questions, table
from tokenizer import ByteTokenizer


def write(folder, rows: list[dict], name: str = "questions.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arc(stem: str, choices: list[str], answer: int, labels: str = "ABCDE") -> dict:
    listed = [{"text": text, "label": label} for text, label in zip(choices, labels)]
    return {"id": "1", "question": {"stem": stem, "choices": listed}, "answerKey": labels[answer]}


def hellaswag(ctx: str, endings: list[str], label: int) -> dict:
    return {"ind": 1, "ctx_a": ctx, "ctx_b": "", "ctx": ctx, "endings": endings, "label": label}


# ---------------------------------------------------------------- golden values


def test_three_measures_by_hand(tmp_path):
    """Four tokens: unknown (a space, here), BOS, a, b. Each measure has another favourite."""
    model = Bigram(
        torch.tensor([[0.2, 0.25, 0.25, 0.3], [0.25] * 4, [0.05, 0.05, 0.8, 0.1], [0.1, 0.1, 0.4, 0.4]]).log()
    )
    log_p = model.table.detach().double()
    # Behind the b of the context; the last is one character of four bytes, unknown as the space is.
    steps = {"aaa": [(3, 0), (0, 2), (2, 2), (2, 2)], "b": [(3, 0), (0, 3)], "\U0001f642": [(3, 0), (0, 0)]}
    sums = {text: sum(log_p[a, b].item() for a, b in own) for text, own in steps.items()}
    question = hellaswag("ab", list(steps), 0)
    result = {}
    for answer, text in enumerate(steps):
        path = write(tmp_path, [question | {"label": answer}])
        scores = multiple_choice(model, Letters("ab"), path)
        result[text] = [scores[measure]["accuracy"] for measure in ("sum", "per_token", "per_byte")]
    best = lambda divisor: max(steps, key=lambda text: sums[text] / divisor(text))  # noqa: E731
    expected = [best(lambda t: 1), best(lambda t: len(steps[t])), best(lambda t: len(t.encode()))]
    for text in steps:
        assert result[text] == [float(text == winner) for winner in expected]
    assert expected == ["b", "aaa", "\U0001f642"]


def test_measures_divide_by_tokens_and_bytes():
    question = Question(("p", "p"), (" ä b", " c"), 0)
    own = measured(question, [torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-4.0])])
    assert own == {
        "sum": [-6, -4],
        "per_token": [-2, -4],
        "per_byte": [-6 / 4, -4],
    }  # ä is two bytes; outer spaces none


def test_a_uniform_model_takes_the_shortest_and_ties_share(tmp_path):
    model = Bigram(torch.zeros(4, 4))
    rows = [hellaswag("a", ["aa", "bb", "ab"], 1), hellaswag("a", ["a", "bb"], 0), hellaswag("a", ["a", "bb"], 1)]
    result = multiple_choice(model, Letters("ab"), write(tmp_path, rows))
    assert result["sum"]["accuracy"] == pytest.approx((1 / 3 + 1 + 0) / 3) == result["fewest_tokens"]
    assert result["per_token"]["accuracy"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3) == result["chance"]
    assert result["count"] == 3


# ---------------------------------------------------------------- the seam between prompt and choice


class Pieces(Letters):
    """Greedy from the left, the longest piece first: "b" and " a" become one token."""

    pieces = ("b a", "a", "b", " ")
    vocab_size = 6

    def encode_batch(self, texts, bos=True, eos=False):
        return [[1] * bos + self._ids(text) for text in texts]

    def _ids(self, text: str) -> list[int]:
        if not text:
            return []
        piece = next(p for p in self.pieces if text.startswith(p))
        return [self.pieces.index(piece) + 2, *self._ids(text[len(piece) :])]


def test_scoring_starts_where_the_first_choice_parts():
    """ "ab" + " a" swallows the b of the prompt, so that all choices are scored from there on."""
    tok, prompts, choices = Pieces(), ("ab", "ab"), (" a", " b")
    rows = tok.encode_batch([p + c for p, c in zip(prompts, choices)])
    assert rows == [[1, 3, 2], [1, 3, 4, 5, 4]]
    assert first_scored(tok, prompts, rows) == [2, 2]
    assert first_scored(tok, ("ab",), rows[1:]) == [3]  # without the first choice, at the seam itself
    assert first_scored(Letters("ab"), ("x",), Letters("ab").encode_batch(["xy"])) == [2]
    assert first_scored(tok, ("ab", "aab"), [rows[1], [1, 3, 3, 4, 5, 4]]) == [3, 4]  # each prompt by itself


def test_sums_differ_as_the_whole_texts_do(tmp_path):
    """So the seam cannot decide a question: the winner by sum is that by total likelihood of prompt and choice."""
    tok, chance = Pieces(), random.Random(0)
    for seed in range(20):
        model = Bigram(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)), context=32)
        choices = ["".join(chance.choices("ab ", k=3)).strip() + "ab" for _ in range(3)]
        totals = log_likelihoods(model, tok, [f"bab {choice}" for choice in choices]).tolist()
        path = write(tmp_path, [hellaswag("bab", choices, totals.index(max(totals)))])
        assert multiple_choice(model, tok, path)["sum"]["accuracy"] == pytest.approx(1 / totals.count(max(totals)))


# ---------------------------------------------------------------- invariance and chance


def random_questions(count: int, seed: int = 0) -> list[dict]:
    """Choices of equal length that nothing but the dice calls right: two to five of them."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        choices = ["".join(chance.choices("abcdefgh", k=6)) for _ in range(chance.randint(2, 5))]
        rows.append(arc("".join(chance.choices("abcdefgh ", k=12)) + "?", choices, chance.randrange(len(choices))))
    return rows


def test_an_untrained_model_is_at_chance(tmp_path):
    model = random_gpt(260, 64, std=0.2)
    rows = random_questions(200)
    result = multiple_choice(model, ByteTokenizer(), write(tmp_path, rows))
    assert result["chance"] == pytest.approx(sum(1 / len(row["question"]["choices"]) for row in rows) / 200)
    for measure in ("sum", "per_token", "per_byte"):
        low, high = result[measure]["chance_interval"]
        assert low <= result[measure]["accuracy"] <= high and high - low < 0.15


def test_batch_size_and_order_of_choices_change_nothing(tmp_path):
    model, rows = random_gpt(260, 30), random_questions(20)  # context 30: all are cut into windows
    results = [multiple_choice(model, ByteTokenizer(), write(tmp_path, rows), batch_size=b) for b in (1, 7, None)]
    assert results[0]["over_context"] > 0
    for result in results:
        del result["seconds"]
        assert result == results[0]
    turned = []
    for row in rows:
        texts = [choice["text"] for choice in row["question"]["choices"]][::-1]
        turned.append(arc(row["question"]["stem"], texts, len(texts) - 1 - "ABCDE".index(row["answerKey"])))
    other = multiple_choice(model, ByteTokenizer(), write(tmp_path, turned))
    assert [other[m]["accuracy"] for m in ("sum", "per_byte")] == [
        results[0][m]["accuracy"] for m in ("sum", "per_byte")
    ]
    assert json.loads(json.dumps(other, allow_nan=False)) == other


# ---------------------------------------------------------------- published formats


def test_arc(tmp_path):
    path = write(tmp_path, [arc(" What flies? ", ["a stone", "a bird ", "a box"], 1, labels="123")])
    kind, (question,) = read_questions(path)
    assert kind == "ARC"
    assert question == Question(("Question: What flies?\nAnswer:",) * 3, (" a stone", " a bird", " a box"), 1)


def test_piqa(tmp_path):
    rows = [{"goal": "dry hands", "sol1": "use a towel", "sol2": "use a spoon "}] * 2
    path = write(tmp_path, rows, "valid.jsonl")
    (tmp_path / "valid-labels.lst").write_text("0\n1\n")
    kind, questions = read_questions(path)
    assert kind == "PIQA" and [q.answer for q in questions] == [0, 1]
    assert questions[0].choices == (" use a towel", " use a spoon")
    (tmp_path / "other.lst").write_text("1\n1\n")
    assert [q.answer for q in read_questions(path, tmp_path / "other.lst")[1]] == [1, 1]


HEADER = "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n"


def test_openbookqa(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_text(HEADER + "7-1\tThe sun is a\t(A) star (B) stone (the big one) (C) sea (D) tree\tcomplete\tB\n")
    kind, (question,) = read_questions(path)
    assert kind == "OpenBookQA" and question.answer == 1
    assert question.prompts[0] == "The sun is a"
    assert question.choices == (" star", " stone (the big one)", " sea", " tree")


def test_hellaswag(tmp_path):
    kind, questions = read_questions(
        write(tmp_path, [hellaswag("He", ["ran.", "sat."], 1) | {"label": v} for v in (1, "1")])
    )
    assert kind == "HellaSwag" and questions == [Question(("He", "He"), (" ran.", " sat."), 1)] * 2


def test_winogrande(tmp_path):
    row = {
        "qID": "1",
        "sentence": "The cup did not fit the bag, as the _ was small.",
        "option1": "cup",
        "option2": "bag",
    }
    ends = row | {"sentence": "Tom likes _", "option1": "Ann", "option2": "Sue"}
    kind, questions = read_questions(write(tmp_path, [row | {"answer": "2"}, ends | {"answer": "1"}]))
    assert kind == "WinoGrande"
    start = "The cup did not fit the bag, as the "
    assert questions[0] == Question((start + "cup", start + "bag"), (" was small.",) * 2, 1)
    assert questions[1] == Question(("Tom likes",) * 2, (" Ann", " Sue"), 0)
    # What is scored is the same text behind either option, so only its likelihood counts, never the option's.
    model = random_gpt(260, 64)
    result = multiple_choice(model, ByteTokenizer(), write(tmp_path, [row | {"answer": "2"}]))
    rows = [start + option + " was small." for option in ("cup", "bag")]
    behind = log_likelihoods(model, ByteTokenizer(), rows) - log_likelihoods(
        model, ByteTokenizer(), [r[:-11] for r in rows]
    )
    assert result["sum"]["accuracy"] == float(behind[1] > behind[0])


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("arc_easy_dev.jsonl", "ARC", 570), ("piqa_dev.jsonl", "PIQA", 1838), ("openbookqa_dev.tsv", "OpenBookQA", 500)],
)
def test_files_as_published(shared_data, name, kind, count):
    found, questions = read_questions(shared_data(f"evals/mcq/{name}"))
    assert (found, len(questions)) == (kind, count)
    answers = [question.answer / len(question.choices) for question in questions]
    assert 0.2 < sum(answers) / count < 0.5 and all(len(set(q.choices)) > 1 for q in questions)


# ---------------------------------------------------------------- disrepair

FINE = arc("Which?", ["this", "that"], 0)
CHOICES = FINE["question"]["choices"]
WINO = {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"}
DISREPAIR = {
    "unknown format": ([{"text": "a"}], r"questions\.jsonl, line 1: fields 'text' are those of no known set: ARC has"),
    "other fields later": (
        [FINE, {"question": FINE["question"]}],
        "line 2: no field 'answerKey', which every record of ARC has",
    ),
    "missing later": ([FINE, {"answerKey": "A"}], "line 2: no field 'question'"),
    "label out of range": (
        [FINE, FINE | {"answerKey": "C"}],
        "line 2: the answer 'C' is out of range; the choices are A, B",
    ),
    "label twice": (
        [FINE | {"question": {"stem": "W", "choices": [CHOICES[0]] * 2}}],
        "line 1: the answer 'A' is out of",
    ),
    "one choice": ([arc("Which?", ["this"], 0)], "line 1: 1 choices; there must be at least 2"),
    "choices no list": ([FINE | {"question": {"stem": "W", "choices": "this"}}], "line 1: question must be an object"),
    "choice no object": (
        [FINE | {"question": {"stem": "W", "choices": ["a", "b"]}}],
        "line 1: each of the choices must be",
    ),
    "question a string": ([FINE | {"question": "Which?"}], "line 1: question must be an object"),
    "stem a number": (
        [FINE | {"question": {"stem": 1, "choices": CHOICES}}],
        "line 1: stem must be a string, not a int",
    ),
    "empty choice": ([arc("Which?", ["this", " "], 0)], "line 1: text is empty"),
    "hellaswag, range": (
        [hellaswag("He", ["a", "b"], 2)],
        "line 1: the answer '2' is out of range; the choices are 0, 1",
    ),
    "hellaswag, true": ([hellaswag("He", ["a", "b"], True)], "line 1: label must be a string, not a bool"),
    "hellaswag, none": ([hellaswag("He", ["a", None], 1)], r"line 1: endings\[1\] must be a string, not a NoneType"),
    "hellaswag, endings": ([hellaswag("He", "ab", 1)], "line 1: endings must be a list, not a str"),
    "winogrande, blanks": ([WINO, WINO | {"sentence": "_ b _"}], "line 2: sentence must hold one blank '_', not 2"),
    "winogrande, range": ([WINO | {"answer": "3"}], "line 1: the answer '3' is out of range; the choices are 1, 2"),
    "winogrande, test set": ([WINO | {"answer": ""}], "line 1: answer is empty"),
    "a field of a megabyte": ([{"k" * 900_000: 1}], "line 1: fields 'k+\\.\\.\\.k+' are those of no known set"),
    "a label of a megabyte": (
        [hellaswag("He", ["a", "b"], "9" * 900_000)],
        "line 1: the answer '9+...9+' is out of range",
    ),
    "labels without end": ([hellaswag("He", ["a"] * 90_000, "z")], "line 1: the answer 'z' is out of range"),
    "empty": ([], r"questions\.jsonl holds no record"),
}


@pytest.mark.parametrize("name", DISREPAIR)
def test_bad_files_say_file_and_line(tmp_path, name):
    rows, message = DISREPAIR[name]
    with pytest.raises(ValueError, match=message) as caught:
        multiple_choice(Bigram(torch.zeros(4, 4)), Letters("ab"), write(tmp_path, rows))
    assert len(str(caught.value)) < 500


def test_bad_labels_of_piqa(tmp_path):
    path = write(tmp_path, [{"goal": "g", "sol1": "a", "sol2": "b"}] * 2, "dev.jsonl")
    labels = tmp_path / "dev-labels.lst"
    with pytest.raises(FileNotFoundError, match=r"dev-labels\.lst is missing"):
        read_questions(path)
    labels.write_text("0\n2\n")
    with pytest.raises(
        ValueError, match=r"dev-labels\.lst, line 2: the answer '2' is out of range; the choices are 0, 1"
    ):
        read_questions(path)
    labels.write_text("0\n")
    with pytest.raises(ValueError, match=r"holds 1 labels, but .*dev\.jsonl 2 questions"):
        read_questions(path)


def test_labels_are_for_piqa_alone(tmp_path):
    (tmp_path / "labels.lst").write_text("0\n")
    (tmp_path / "open.tsv").write_text(HEADER + "1\tA bird\t(A) flies (B) swims\tA bird\tA\n")
    for path, kind in ((write(tmp_path, [hellaswag("He", ["a", "b"], 0)]), "HellaSwag"),
                       (tmp_path / "open.tsv", "OpenBookQA")):  # fmt: skip
        assert read_questions(path)[0] == kind
        with pytest.raises(ValueError, match=rf"labels\.lst': .*{path.name} is of {kind}, and only PIQA's answers"):
            read_questions(path, tmp_path / "labels.lst")


def test_two_models_of_one_name_are_refused(tmp_path, monkeypatch):
    """One would stand for both in the result."""
    monkeypatch.setattr(files, "TRAINED_MODELS", tmp_path)
    for paths in ("auto", write(tmp_path, [hellaswag("He", ["a", "b"], 0)])):
        with pytest.raises(ValueError, match="one have the same name: rename"):
            multiple_choice_of(["one", tmp_path / "elsewhere" / "one"], paths)


TSV_DISREPAIR = {
    "header": ("a\tb\n", r"dev\.tsv, line 1: the first line must be OpenBookQA's"),
    "empty": ("", "the first line must be"),
    "no question": (HEADER, "holds no question"),
    "columns": (HEADER + "1\tstem\t(A) a (B) b\tB\n", "line 2: 4 columns"),
    "choices": (HEADER + "1\tstem\t(A) a (C) b\tall\tA\n", "line 2: choices must be written"),
    "empty choice": (HEADER + "1\tstem\t(A) a (B) (C) c\tall\tA\n", "line 2: a choice is empty"),
    "range": (
        HEADER + "1\tstem\t(A) a (B) b\tall\tE\n",
        "line 2: the answer 'E' is out of range; the choices are A, B",
    ),
    "long": (HEADER + "x" * 10**7, "line 2: longer than 1,000,000 bytes"),
}


@pytest.mark.parametrize("name", TSV_DISREPAIR)
def test_bad_tsv(tmp_path, name):
    content, message = TSV_DISREPAIR[name]
    (tmp_path / "dev.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_questions(tmp_path / "dev.tsv")


def test_table(tmp_path):
    result = multiple_choice(Bigram(torch.zeros(4, 4)), Letters("ab"), write(tmp_path, random_questions(5)))
    lines = table({"one": [result], "two": [result]}).splitlines()
    assert len(lines) == 4 and "ARC (questions.jsonl)" in lines[2] and "~" in lines[2]
    assert all(
        math.isfinite(end) for measure in ("sum", "per_token", "per_byte") for end in result[measure]["interval"]
    )
