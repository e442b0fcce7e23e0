"""Minimal pairs: likelihoods against brute force, pairs whose outcome is known, files in every form and disrepair."""

import itertools
import json
import math
import re
import zipfile
from collections import Counter

import pytest
import torch
from torch import nn
from toy_models import Bigram, Letters

from config import ModelConfig
from lab import files, records, storyworld
from lab.evaluation import minimal_pairs, token_losses
from lab.intervals import Z, chance_interval, mean_difference, mean_of_groups, wilson
from lab.likelihood import log_likelihoods, share_of_best, token_log_likelihoods
from lab.minimal_pairs import difference, minimal_pairs_of, pairs_fingerprint, read_pairs, table
from lab.saving import save_model
from model import GPT
from tokenizer import ByteTokenizer, get_tokenizer


@pytest.fixture
def bigram():
    return Bigram(torch.randn(4, 4, generator=torch.Generator().manual_seed(3)))


def random_gpt(vocab_size: int, context: int, seed: int = 0, std: float = 0.3) -> GPT:
    """A GPT that has learned nothing, and with nothing left at zero, so that every position matters."""
    torch.manual_seed(seed)
    model = GPT(
        ModelConfig(dim=16, num_layers=2, vocab_size=vocab_size, max_seq_len=context, num_q_heads=4, num_kv_heads=2)
    )
    for p in model.parameters():
        nn.init.normal_(p, std=std)
    return model


def pair(good: str, bad: str, **fields) -> dict:
    return {"sentence_good": good, "sentence_bad": bad, **fields}


# ---------------------------------------------------------------- likelihoods


def test_all_texts_of_a_length_share_one_probability(bigram):
    """Brute force over the four tokens: what may follow BOS in three steps has probability 1 in all."""
    for model in (bigram, random_gpt(4, 8)):
        rows = [[1, *row] for row in itertools.product(range(4), repeat=3)]
        totals = [own.double().sum().exp().item() for own in token_log_likelihoods(model, rows)]
        assert len(totals) == 64 and sum(totals) == pytest.approx(1, abs=1e-6)


def test_likelihood_by_hand(bigram):
    log_p = bigram.table.detach().double().log_softmax(-1)
    expected = [sum(log_p[a, b].item() for a, b in steps) for steps in (((1, 2), (2, 3), (3, 3)), ((1, 3),), ())]
    assert log_likelihoods(bigram, Letters("ab"), ["abb", "b", ""]).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_text_longer_than_the_context_is_cut_as_in_evaluation():
    model, texts = random_gpt(4, 5), ["abbabaabbab", "ab"]
    expected = [-losses.double().sum().item() for losses in token_losses(model, Letters("ab"), texts)]
    assert log_likelihoods(model, Letters("ab"), texts).tolist() == pytest.approx(expected, rel=1e-7)
    assert minimal_pairs(model, Letters("ab"), [pair(*texts)])["over_context"] == 1


def test_batch_size_and_padding_change_nothing():
    model = random_gpt(4, 16)
    texts = ["ab" * n + "b" * (n % 3) for n in range(1, 8)] + ["a", "b", "abab"]
    alone = torch.cat([log_likelihoods(model, Letters("ab"), [text]) for text in texts])
    for batch_size in (1, 3, 100, None):
        together = log_likelihoods(model, Letters("ab"), texts, batch_size=batch_size)
        assert torch.allclose(together, alone, rtol=1e-6, atol=0)
    results = [
        minimal_pairs(model, Letters("ab"), [pair(*two) for two in zip(texts, texts[1:])], batch_size=b) for b in (1, 7)
    ]
    assert results[0]["by"] == results[1]["by"] and results[0]["accuracy"] == results[1]["accuracy"]


def test_equal_rows_get_the_very_same_numbers():
    scores = log_likelihoods(random_gpt(4, 16), Letters("ab"), ["abba", "b" * 15, "abba"], batch_size=2)
    assert scores[0] == scores[2]


def test_a_model_that_answers_nan_is_refused(bigram):
    bigram.table.data[2, 2] = math.nan
    with pytest.raises(ValueError, match="not numbers"):
        minimal_pairs(bigram, Letters("ab"), [pair("aab", "b")])


# ---------------------------------------------------------------- outcomes


def test_right_wrong_and_tie():
    """After anything, "a" is likelier than "b"."""
    model = Bigram(torch.tensor([[0.0, 0.0, 3.0, 1.0]] * 4))
    pairs = [pair("aa", "ab"), pair("ba", "bb"), pair("b", "a"), pair("ab", "ba"), pair("a", "a"), pair("x", "y")]
    result = minimal_pairs(model, Letters("ab"), pairs, keep_outcomes=True)
    assert result["outcomes"] == [1, 1, 0, 0.5, 0.5, 0.5]
    assert result["accuracy"] == pytest.approx(3.5 / 6)
    assert (result["count"], result["ties"], result["identical"], result["unknown_tokens"]) == (6, 3, 1, 2)
    assert result["fewest_tokens"] == 0.5 and result["chance"] == 0.5
    assert minimal_pairs(model, Letters("ab"), [pair("b", "aaaa")])["fewest_tokens"] == 1
    # Per token "a" is the likelier one, but twelve of them are not: totals are not divided by lengths.
    assert minimal_pairs(model, Letters("ab"), [pair("b", "a" * 12)])["accuracy"] == 1


def test_share_of_best():
    assert share_of_best([-2.0, -1.0, -3.0], 1) == 1
    assert share_of_best([-2.0, -1.0, -3.0], 0) == 0
    assert share_of_best([-1.0, -1.0, -3.0, -1.0 - 1e-9], 0) == pytest.approx(1 / 3)
    assert share_of_best([-math.inf, -math.inf], 0) == 0.5
    assert share_of_best([-math.inf, -5.0], 0) == 0


def test_a_uniform_model_has_chance_exactly():
    pairs = [pair("abab"[i:] + "abab"[:i], "bbaa") for i in range(4)]
    result = minimal_pairs(Bigram(torch.zeros(4, 4)), Letters("ab"), pairs)
    assert result["accuracy"] == 0.5 and result["ties"] == 4


def test_an_untrained_model_is_at_chance():
    """On real text of the built-in world, whose pairs betray nothing by their lengths."""
    tok = get_tokenizer(2048)
    model = random_gpt(tok.vocab_size, 256, std=0.1)
    result = minimal_pairs(model, tok, "storyworld", max_pairs=140)
    low, high = result["chance_interval"]
    assert low <= result["accuracy"] <= high
    assert low <= result["fewest_tokens"] <= high


# ---------------------------------------------------------------- intervals


def test_wilson_interval():
    """Against the definition: at its ends, what was seen lies exactly Z standard deviations from the true share."""
    for right, count in ((8, 10), (0, 5), (5, 5), (311.5, 700)):
        for end in wilson(right, count):
            if 1e-9 < end < 1 - 1e-9:
                assert abs(right / count - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / count))
    assert wilson(0, 5)[0] == pytest.approx(0, abs=1e-12) and wilson(5, 5)[1] == pytest.approx(1)
    assert wilson(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-4)


def test_chance_interval_holds_95_percent_of_guesses():
    """Exactly, by the binomial distribution."""
    for count in (20, 100, 333):
        low, high = chance_interval([0.5] * count)
        inside = sum(math.comb(count, k) for k in range(count + 1) if low <= k / count <= high) / 2**count
        assert 0.93 < inside < 0.97


def test_mean_of_groups():
    groups = [{"accuracy": 0.8, "count": 100}, {"accuracy": 0.6, "count": 400}]
    result = mean_of_groups(groups)
    assert result["accuracy"] == pytest.approx(0.7) and result["groups"] == 2
    plain = Z * math.sqrt(0.8 * 0.2 / 100 + 0.6 * 0.4 / 400) / 2
    assert result["interval"][1] - 0.7 == pytest.approx(plain, rel=0.05)
    low, high = mean_of_groups([{"accuracy": 1.0, "count": 4}])["interval"]
    assert low < 0.8 and high == 1


def test_difference_pair_by_pair(bigram):
    assert mean_difference([1, 0, 1, 0.5], [0, 0, 1, 0.5])["difference"] == 0.25
    assert mean_difference([1, 0] * 50, [0, 1] * 50)["interval"] == pytest.approx([-0.197, 0.197], abs=1e-3)
    pairs = [pair("ab"[i % 2] * 3, "ba") for i in range(6)]
    kept = minimal_pairs(bigram, Letters("ab"), pairs, keep_outcomes=True)
    assert difference(kept, kept) == {"difference": 0, "interval": [0, 0], "count": 6}
    with pytest.raises(ValueError, match="same pairs, made with keep_outcomes"):
        difference(kept, minimal_pairs(bigram, Letters("ab"), pairs))
    with pytest.raises(ValueError, match="same pairs"):
        difference(kept, minimal_pairs(bigram, Letters("ab"), pairs[:5], keep_outcomes=True))


# ---------------------------------------------------------------- files

BLIMP = {
    "causative": [pair("aa", "ab", UID="causative", field="syntax", linguistics_term="argument_structure")] * 2,
    "npi": [pair("b", "a", UID="npi", field="syntax/semantics", linguistics_term="npi_licensing")],
    "only": [pair("ba", "bb", UID="only", field="syntax_semantics", linguistics_term="npi_licensing")],
}


def jsonl(rows: list[dict]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def favours_a():
    return Bigram(torch.tensor([[0.0, 0.0, 3.0, 1.0]] * 4))


def test_zip_folder_file_and_list_give_the_same(tmp_path, favours_a):
    folder = tmp_path / "blimp"
    folder.mkdir()
    with zipfile.ZipFile(tmp_path / "BLiMP.zip", "w") as archive:
        for name, rows in BLIMP.items():
            (folder / f"{name}.jsonl").write_text(jsonl(rows))
            archive.writestr(f"data/{name}.jsonl", jsonl(rows))
        archive.writestr("__MACOSX/data/._npi.jsonl", b"\x00\x05\x16\x07")
        archive.writestr("data/.DS_Store", b"\x00")
    rows = [row for rows in BLIMP.values() for row in rows]
    (tmp_path / "all.jsonl").write_text("\ufeff" + jsonl(rows) + "\n", encoding="utf-8")
    sources = [tmp_path / "BLiMP.zip", folder, str(tmp_path / "all.jsonl"), rows]
    results = [minimal_pairs(favours_a, Letters("ab"), source) for source in sources]
    assert [result.pop("name") for result in results] == ["BLiMP.zip", "blimp", "all.jsonl", "list"]
    for result in results:
        del result["seconds"]
        assert result == results[0]
    by = results[0]["by"]
    assert {name: group["accuracy"] for name, group in by["UID"].items()} == {"causative": 1, "npi": 0, "only": 1}
    assert by["field"]["syntax_semantics"]["accuracy"] == 0.5  # BLiMP writes this field in two ways
    assert by["linguistics_term"]["npi_licensing"]["count"] == 2
    assert results[0]["mean_of"]["UID"]["accuracy"] == pytest.approx(2 / 3) and results[0]["accuracy"] == 0.75
    assert json.loads(json.dumps(results[0], allow_nan=False)) == results[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["BLiMP.zip", "all.jsonl", "blimp"]  # nothing unpacked


GOOD_LINE = json.dumps(pair("a", "b")).encode() + b"\n"
DISREPAIR = {
    "torn": (GOOD_LINE + b'{"sentence_good": "a", "sent', r"bad\.jsonl, line 2: torn or no JSON"),
    "missing field": (
        GOOD_LINE * 2 + b'{"sentence_good": "a"}',
        r"line 3: no field 'sentence_bad'; there are 'sentence_g",
    ),
    "a field of a megabyte": (b'{"' + b"k" * 900_000 + b'": 1}', r"no field 'sentence_good'; there are 'k+\.\.\.k+'$"),
    "a thousand fields": (
        json.dumps({f"f{i}": 1 for i in range(1000)}).encode(),
        r"no field 'sentence_good'; there are 'f0', .*, 'f19', \.\.\.$",
    ),
    "no string": (
        b'{"sentence_good": ["a"], "sentence_bad": "b"}',
        r"line 1: sentence_good must be a string, not a list",
    ),
    "blank": (b'\n\n{"sentence_good": "a", "sentence_bad": " "}', r"line 3: sentence_bad is empty"),
    "no object": (b'["a", "b"]', r"line 1: must be a JSON object"),
    "nested too deep": (b"[" * 200_000, r"line 1: torn or no JSON"),
    "empty": (b"", r"bad\.jsonl holds no record"),
    "blank lines": (b"\n \n", r"holds no record"),
    "latin-1": (GOOD_LINE + b'{"sentence_good": "\xe9"}', r"line 2: not UTF-8"),
    "half a character": (b'{"sentence_good": "\\ud800", "sentence_bad": "b"}', r"line 1: sentence_good holds half"),
    "a line of 10 MB": (GOOD_LINE + b'{"sentence_good": "' + b"a" * 10**7, r"line 2: longer than 1,000,000 bytes"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", r"bad\.jsonl is a Git LFS pointer"),
}


@pytest.mark.parametrize("name", DISREPAIR)
def test_bad_files_say_file_and_line(tmp_path, bigram, name):
    content, message = DISREPAIR[name]
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        minimal_pairs(bigram, Letters("ab"), tmp_path / "bad.jsonl")
    assert len(str(caught.value)) < 400
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("data/bad.jsonl", content)
    with pytest.raises(ValueError, match=r"bad\.zip"):
        minimal_pairs(bigram, Letters("ab"), tmp_path / "bad.zip")


def test_a_long_line_is_not_read_to_its_end(tmp_path):
    class Counting:
        def __init__(self, file):
            self.file, self.read = file, 0

        def readline(self, limit):
            line = self.file.readline(limit)
            self.read += len(line)
            return line

    (tmp_path / "long").write_bytes(b"x" * 10**7)
    with open(tmp_path / "long", "rb") as file, pytest.raises(ValueError, match="line 1: longer"):
        list(records.file_lines(counting := Counting(file), "long"))
    assert counting.read == records.MAX_LINE + 1


def test_other_bad_sources(tmp_path, bigram):
    (tmp_path / "folder").mkdir()
    (tmp_path / "torn.zip").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    for source, message in (
        (tmp_path / "folder", "a folder without a .jsonl file"),
        (tmp_path / "torn.zip", "torn or no zip file"),
        (tmp_path / "none.zip", "holds no .jsonl file"),
        ([], "holds no pair"),
        ([pair("a", "b"), {"sentence_good": "a"}], r"pairs\[1\]: no field 'sentence_bad'"),
        (["a"], r"pairs\[0\]: must be a dict"),
    ):
        with pytest.raises(ValueError, match=message):
            minimal_pairs(bigram, Letters("ab"), source)
    with pytest.raises(FileNotFoundError):
        minimal_pairs(bigram, Letters("ab"), tmp_path / "nowhere.jsonl")
    with pytest.raises(ValueError, match="must be at least 1"):
        minimal_pairs(bigram, Letters("ab"), [pair("a", "b")], max_pairs=0)


def test_a_damaged_member_of_a_zip(tmp_path, bigram):
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.jsonl", GOOD_LINE * 50)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="torn"):
        minimal_pairs(bigram, Letters("ab"), path)


def test_a_damaged_member_of_a_packed_zip(tmp_path):
    """Wherever a byte is wrong: the message names the file."""
    path = tmp_path / "damaged.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "data.jsonl", "".join(json.dumps(pair(f"a {i} {i * i}", f"b {i * 7}")) + "\n" for i in range(900))
        )
    content, said = path.read_bytes(), set()
    for at in range(60, len(content) - 150, 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        with pytest.raises(ValueError, match=r"damaged\.zip") as caught:
            list(records.json_records(path))
        said.add("decompressing" in str(caught.value))
    assert said == {True, False}


@pytest.mark.parametrize("offsets, value", [((6, 8), 1), ((8, 10), 9)])  # the flag of encryption; Deflate64
def test_a_zip_that_python_cannot_read(tmp_path, offsets, value):
    path = tmp_path / "strange.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.jsonl", GOOD_LINE)
    content = bytearray(path.read_bytes())
    for start, offset in zip((0, content.find(b"PK\x01\x02")), offsets):  # in the file's own header, and the list's
        content[start + offset] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"strange\.zip can't be read .*: unpack it"):
        list(records.json_records(path))


def test_hidden_files_of_a_system_are_left_out(tmp_path):
    (tmp_path / "folder").mkdir()
    with zipfile.ZipFile(tmp_path / "pairs.zip", "w") as archive:
        for name, content in (("causative.jsonl", GOOD_LINE), ("._causative.jsonl", b"\x00\x05\x16\x07\xff")):
            (tmp_path / "folder" / name).write_bytes(content)
            archive.writestr(f"data/{name}", content)
    for source in (tmp_path / "folder", tmp_path / "pairs.zip"):
        assert [record for _, record in records.json_records(source)] == [pair("a", "b")]


def test_max_pairs_are_spread_over_the_file():
    name, some = read_pairs([pair("a", "b", UID=str(i)) for i in range(10)], max_pairs=5)
    assert name == "list" and [record["UID"] for record in some] == ["0", "2", "4", "6", "8"]


def test_blimp_as_published(shared_data):
    _, pairs = read_pairs(shared_data("evals/blimp/BLiMP.zip"))
    assert len(pairs) == 67_000
    assert set(Counter(p["UID"] for p in pairs).values()) == {1000}
    assert {p["field"] for p in pairs} == {"morphology", "semantics", "syntax", "syntax_semantics"}
    assert len({p["linguistics_term"] for p in pairs}) >= 12


# ---------------------------------------------------------------- saved models


def test_groups_added_to_a_file_make_another_set(tmp_path, monkeypatch):
    """What was kept of the pairs without their groups knows nothing of these."""
    monkeypatch.setattr(files, "TRAINED_MODELS", tmp_path)
    save_model(random_gpt(260, 16), ByteTokenizer(), "one")
    found = []
    for rows in ([pair("a cat", "cat a")], [pair("a cat", "cat a", UID="order")]):
        (tmp_path / "pairs.jsonl").write_text(jsonl(rows))
        found += [minimal_pairs_of(["one"], tmp_path / "pairs.jsonl", save=True)["pairs.jsonl"]["one"] for _ in "12"]
    assert [list(result["by"]) for result in found] == [[], [], ["UID"], ["UID"]]
    assert found[0] == found[1] and found[2] == found[3]


def test_fingerprints_tell_all_groups_apart():
    rows = [[pair("a", "b")] * 2, [pair("a", "b", UID="x"), pair("a", "b")], [pair("a", "b"), pair("a", "b", UID="x")],
            [pair("a", "b", field="x"), pair("a", "b")]]  # fmt: skip
    assert len({pairs_fingerprint(own) for own in rows}) == 4
    extra = [row | {"other": 1} for row in rows[1]]  # no result depends on that field
    assert pairs_fingerprint(read_pairs(extra)[1]) == pairs_fingerprint(rows[1])


def test_two_models_of_one_name_are_refused(tmp_path, monkeypatch):
    """One would stand for both in the result."""
    monkeypatch.setattr(files, "TRAINED_MODELS", tmp_path)
    for pairs in ("auto", [pair("a", "b")]):
        with pytest.raises(ValueError, match="one have the same name: rename"):
            minimal_pairs_of(["one", tmp_path / "elsewhere" / "one"], pairs)


# ---------------------------------------------------------------- tables


def test_table(favours_a, bigram):
    rows = [row for rows in BLIMP.values() for row in rows]
    results = {name: minimal_pairs(model, Letters("ab"), rows) for name, model in (("a", favours_a), ("b", bigram))}
    lines = table(results, by="field").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["syntax", "syntax_semantics", "all pairs"]
    assert "~50.0 (" in lines[3]  # one of two: a coin would do as well
    assert len(set(map(len, lines))) == 1
    with pytest.raises(ValueError, match="by='kind' is no grouping of list; choose from UID, linguistics_term, field"):
        table(results, by="kind")
    other = minimal_pairs(bigram, Letters("ab"), rows[:1])
    with pytest.raises(ValueError, match="different pairs"):
        table({"a": results["a"], "b": other})


# ---------------------------------------------------------------- storyworld's own pairs


@pytest.fixture(scope="module")
def made() -> list[dict]:
    return list(storyworld.minimal_pairs(350, seed="balance"))


def test_storyworld_pairs_are_grouped_and_fingerprinted(bigram):
    first, again = (minimal_pairs(bigram, Letters("ab"), "storyworld", max_pairs=21) for _ in range(2))
    # Another figure means other pairs: then raise PAIRS_VERSION (or storyworld.VERSION), and the protocol with it.
    assert first["fingerprint"] == again["fingerprint"] == "4a5bddb0b8ddd8c9"
    assert {name: group["count"] for name, group in first["by"]["kind"].items()} == dict.fromkeys(
        ("affordance", "agreement", "cause", "feeling", "location", "recall", "who_did_it"), 3
    )
    assert sum(group["count"] for group in first["by"]["sentences_back"].values()) == 3


def test_length_tells_nothing(made):
    for kind in storyworld.pairs.KINDS:
        lengths = [
            [len(p[side].encode()) for side in ("sentence_good", "sentence_bad")] for p in made if p["kind"] == kind
        ]
        shorter = sum(good < bad for good, bad in lengths) - sum(good > bad for good, bad in lengths)
        assert shorter == 0, kind  # they come in twos; 50 of each kind


@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_word_frequency_tells_nothing(made, unit):
    """A unigram model, of words or of tokens, fitted on other stories, is near chance."""
    tok = get_tokenizer(2048)
    split = re.compile(r"\w+|[^\w\s]").findall if unit == "words" else tok.encode
    counts = Counter(unit for story in storyworld.generate_stories(1000, seed="other") for unit in split(story))

    def score(text: str) -> float:
        return sum(math.log((counts[unit] + 0.5) / counts.total()) for unit in split(text))

    outcomes = {kind: [] for kind in storyworld.pairs.KINDS}
    for p in made:
        outcomes[p["kind"]].append(share_of_best([score(p["sentence_good"]), score(p["sentence_bad"])], 0))
    everything = [outcome for own in outcomes.values() for outcome in own]
    low, high = chance_interval([0.5] * len(everything))
    assert low <= sum(everything) / len(everything) <= high
    for kind, own in outcomes.items():
        assert abs(sum(own) / len(own) - 0.5) < 3 * 0.5 / math.sqrt(len(own)), (kind, sum(own) / len(own))


def test_recall_reaches_back_as_far_as_it_says(made):
    """Counted anew: the sentences that end between the last mention of the answer and where the texts part."""
    distances = Counter()
    for p in made:
        if p["kind"] != "recall":
            assert p["sentences_back"] is None
            continue
        good, bad, (relation, what, answer) = p["sentence_good"], p["sentence_bad"], p["facts"]["good"]
        shared = next(i for i in range(len(good)) if good[i] != bad[i])
        before = good[:shared]
        start = re.search(r"\w*$", before).start()  # of the word in which they part
        between = before[before.rindex(answer if relation == "called" else f"{answer} {what}") :]
        assert len(re.split(r'[.!?]"?\s', between)) - 1 == p["sentences_back"] >= 1
        distances[relation, p["sentences_back"]] += 1
        if relation == "called":
            assert good[start:].replace(answer, p["facts"]["bad"][2]) == bad[start:]
            assert p["facts"]["bad"][2] not in good
    assert len(distances) == 2 * 6 and min(distances.values()) >= 3  # names and looks, 1 to 6 sentences back
