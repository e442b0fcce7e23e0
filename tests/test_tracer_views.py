"""How traces are shown: text at four levels, folding, HTML, the table, comparisons."""

import html
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from config import ModelConfig
from lab.tracer.columns import MAX_LEFT
from lab.tracer.view import LEVELS
from model import GPT, MQA
from tools import diff, trace

BASE = dict(dim=32, num_q_heads=4, num_kv_heads=2, head_dim=6, mlp_hidden=80, vocab_size=97, max_seq_len=16)


def make(num_layers=2, **changes):
    return GPT(ModelConfig(num_layers=num_layers, **(BASE | changes)))


def traced(model=None, tokens=(3, 5), **options):
    model = model or make()
    with trace(model, **options) as tr:
        model(torch.randint(97, tokens))
    return tr


@pytest.fixture(scope="module")
def ten():
    torch.manual_seed(0)
    return traced(make(10))


@pytest.fixture(scope="module")
def decoding():
    """Traces of one model: of a whole row, and of the token after it with a cache."""
    torch.manual_seed(0)
    model = make()
    ctx = model.context(torch.zeros(3, 5, dtype=torch.int64), decode=True)
    model(torch.randint(97, (3, 5)), ctx)
    with trace(model) as one:
        model(torch.randint(97, (3, 1)), ctx)
    return traced(model), one


def find(tr, text, level=None):
    """The one line that holds a text."""
    lines = [line for line in tr.text(level).splitlines() if text in line]
    assert len(lines) == 1, lines
    return lines[0]


# ---------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("level", LEVELS)
def test_ten_layers_fold_into_a_screen(ten, level):
    lines = ten.text(level).splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= (150 if level == "op" else 140)
    layer = sum(p.numel() for p in ten.model.layers[0].parameters())
    assert f"layers.0…9 ×10  ResidualLayer · {layer:,} params each" in find(ten, "ResidualLayer", level)
    assert not [line for line in lines if line != line.rstrip()]


def test_what_each_level_shows(ten):
    found = {level: ten.text(level) for level in LEVELS}
    assert "▸ Wq  Linear · 768 params" in found["module"] and "project()" not in found["module"]
    assert "▸ project()" in found["method"] and ":2" not in found["method"]
    assert re.search(r" q +Wq, unflatten +:\d+ +\(B,T,D\) → \(B,T,H,K\)  =\(3,5,4,6\) +23.0 kFLOP", found["assign"])
    assert re.search(r" q +unflatten +:\d+ +\(B,T,H·K\) → \(B,T,H,K\)  =\(3,5,4,6\) +view", found["op"])
    assert "saves" in found["op"] and "saves" not in found["assign"]


def test_columns_are_aligned(ten):
    lines = ten.text().splitlines()[2:]
    arrows = [re.search(r"(?<=   )(\S+ )?\(B", line) for line in lines]
    starts = {found.start() for found in arrows if found}
    assert len(starts) == 1 and starts.pop() <= MAX_LEFT + 3


def test_the_header_lists_the_letters_in_sight(ten):
    assert ten.header().startswith("GPT  B=3 T=5 D=32 H=4 G=2 K=6 F=80 V=97 (as seen)   fp32 cpu   ")
    mlp = ten.model.layers[0].mlp
    with trace(mlp, names=ten.model.cfg) as tr:
        mlp(torch.randn(3, 5, 32))
    assert tr.header().startswith("MLP  B=3 T=5 D=32 F=80 (as seen)   ")


def test_numbers_stand_where_a_shape_is_new(ten):
    text = ten.text()
    assert text.count("=(3,5,4,6)") == text.count("=(3,5,80)") == text.count("=(3,5,32)") == 1


def test_repeated_and_closed_and_tied(ten):
    assert find(ten, "rotate()").split("   ")[-1].strip() == "[4 lines]"
    assert "(B,T,H,K) (B,T,G,K) → same" in find(ten, "rotate()")
    assert "tied→embed" in find(ten, "▸ head", "module")
    assert "F.rms_norm" not in ten.text() and "rms_norm" not in ten.text() and "rms_norm" in ten.text(full=True)
    assert "line]" not in ten.text(full=True) and "lines]" not in ten.text(full=True)


def test_a_cached_decode_shows_what_is_written_where(decoding):
    line = next(line for line in str(decoding[1]).splitlines() if "[…]=" in line)
    assert re.search(r"\(B,G,T,K\) \(B,1\) int64 \(B,T\) int64 → \(\S*B,G,\S+,K\)  =\(2,3,2,16,6\)", line)
    assert "self" not in find(decoding[1], "allowed()")


def test_chunked_attention_shows_each_round():
    model = make(max_seq_len=300)
    lines = str(traced(model, (2, 300))).splitlines()
    assert sum("softmax" in line for line in lines) == 3 and max(map(len, lines)) <= 150


class Plain(nn.Module):
    """Undecorated, with tuple, dict and keyword-only arguments, and a name that HTML must not take for markup."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(12, 12), nn.Linear(12, 12), nn.ReLU())
        self.norms = nn.ModuleDict({"<b>&": nn.LayerNorm(12)})

    def helper(self, x, *, note="<i>", scale=2.0):
        return {"y": x * scale, "pair": (x, x.sum(-1))}

    def forward(self, x):
        y = self.norms["<b>&"](self.inner(x))
        found = self.helper(y, note="<script>")
        found["y"][0] = 0
        return found, x < y


@pytest.fixture(scope="module")
def plain():
    model = Plain()
    with trace(model) as tr:
        model(torch.randn(3, 7, 12))
    return tr


def test_undecorated_modules(plain):
    assert "found = helper()" in find(plain, "helper()") and "note='<script>'" in find(plain, "helper()")
    assert "{y: (B,T,12), pair: ((B,T,12), (B,T))}" in find(plain, "▸ helper()", "method")
    assert "▸ 0…1 ×2  Linear · 156 params each" in find(plain, " ×2 ", "module")
    inside = [line for line in str(plain).splitlines() if line.startswith("│ │   ") and " 0 " in line]
    assert len(inside) == 1 and ":" not in inside[0], "a line number of PyTorch's own file says nothing here"


def test_layers_that_differ_are_not_folded():
    model = make(4)
    model.layers[2].mlp.Wdown = nn.Linear(80, 32, bias=True)
    labels = re.findall(r"(?<=▸ )layers\.\S+(?: ×\d+)?", traced(model).text("module"))
    assert labels == ["layers.0…1 ×2", "layers.2", "layers.3"]


def test_several_calls_are_told_apart_by_their_sizes():
    model = make()
    with trace(model) as tr:
        model(torch.randint(97, (3, 5)))
        model(torch.randint(97, (3, 4)))
    lines = str(tr).splitlines()
    assert [line.split("   ")[0] for line in lines[:2]] == [
        f"GPT  B=3 T={length} D=32 H=4 G=2 K=6 F=80 V=97 (as seen)" for length in (5, 4)
    ]
    roots = [line for line in lines if line.startswith("▸ ")]
    assert [re.search(r"=\S+", line)[0] for line in roots] == ["=(3,5,97)", "=(3,4,97)"]


def test_a_failed_call_is_marked():
    model = make(3)
    model.layers[1].mlp.Wdown = nn.Linear(79, 32)
    with pytest.raises(RuntimeError), trace(model) as tr:
        model(torch.randint(97, (3, 5)))
    assert find(tr, "▸ x = layers.1").split("   ")[1].strip() == "x (B,T,D)  ctx → ✗"
    assert re.search(r"return +Wdown +:\d+ +\(B,T,F\) → ✗", str(tr))


# ---------------------------------------------------------------------------------------------------- only


def test_only_shows_what_fits_and_what_is_inside():
    tr = traced(only="layers.1.*")
    rows = [row.name for row in tr.rows()]
    assert rows[0] == "layers.1.attn_norm" and "layers.1.attn" in rows and {r.split(".")[1] for r in rows} == {"1"}
    assert "project()" in str(tr) and "layers.0" not in str(tr) and "embed" not in str(tr)
    assert str(traced(only="layers.*.mlp")).count("layers.0…1.mlp ×2  MLP") == 1
    assert [row.name for row in traced(only="*").rows()] == ["GPT"]


def test_only_that_fits_nothing_says_so_and_what_there_is():
    tr = traced(only="layers.7.attn")
    assert "only='layers.7.attn' fits the path of no module that ran" in str(tr) and "layers.1.attn" in str(tr)
    assert "only='layers.7.attn'" in html.unescape(tr._repr_html_())
    assert "only='*attn*' would fit" in str(traced(only="attn"))


# ---------------------------------------------------------------------------------------------------- time, statistics


def test_timing_and_statistics_fold_too():
    lines = str(traced(make(10), timing=True, stats=True)).splitlines()
    assert len(lines) <= 60
    rows = [line for line in lines[1:] if "→" in line]
    assert all(re.search(r" \d+\.\d{3} ms", line) for line in rows)
    norm = next(line for line in rows if "attn_norm" in line)
    assert re.search(r"mean -?[\d.e-]+ std 0\.9\S* min -\S+ max \S+ +\[2 lines\]", norm)
    assert "all zero" in next(line for line in rows if " Wdown " in line), "blocks start by adding nothing"
    assert re.search(r"std [\d.]+…[\d.]+", next(line for line in rows if " Wup " in line)), "a range over ten layers"


def test_a_layer_with_nan_is_not_folded_with_others():
    model = make(4)
    with torch.no_grad():
        model.layers[1].mlp.Wdown.weight.fill_(torch.nan)
    tr = traced(model, stats=True, level="module")
    assert re.findall(r"layers\.\S+", "\n".join(str(tr).splitlines()[:-1])) == ["layers.0", "layers.1", "layers.2…3"]
    assert "480 nan" in find(tr, "▸ layers.1 ")


# ---------------------------------------------------------------------------------------------------- HTML


class Elements(HTMLParser):
    """Checks that elements are nested rightly; collects the text, and that of open `<details>` alone."""

    def __init__(self, page):
        super().__init__()
        self.stack, self.all, self.seen, self.classes, self.titles, self.tags = [], [], [], set(), [], set()
        self.feed(page)
        assert not self.stack, f"left open: {self.stack}"

    def handle_starttag(self, tag, attrs):
        self.stack.append((tag, dict(attrs)))
        self.tags.add(tag)
        self.classes |= set((dict(attrs).get("class") or "").split())
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        tags = [tag for tag, _ in self.stack]
        if "style" in tags:
            return
        self.all.append(data)
        closed = [i for i, (tag, attrs) in enumerate(self.stack) if tag == "details" and "open" not in attrs]
        if not closed or (len(closed) == 1 and tags[closed[0] + 1 : closed[0] + 2] == ["summary"]):
            self.seen.append(data)

    def lines(self, texts):
        return [" ".join(line.split()) for line in "".join(texts).splitlines()]


def squeezed(text):
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.mark.parametrize("level", LEVELS)
def test_html_holds_the_rows_of_the_text(ten, level):
    tr = traced(ten.model, level=level)
    page = Elements(tr._repr_html_())
    assert page.lines(page.seen) == squeezed(str(tr)), "what is open in the page is what the text shows"
    without = [re.sub(r" ?\[\d+ lines?\]$", "", line) for line in page.lines(page.all)]
    assert without == squeezed(tr.text(full=True)), "stripped of its elements, the page is the text with all open"
    assert {"details", "summary", "pre"} <= page.tags or level == "module"
    assert len(tr._repr_html_()) < 100_000


def test_html_colours_letters_alike_and_tells_more_on_hovering(ten):
    page = ten._repr_html_()
    shades = {letter: set(re.findall(rf'<i class="(d\d+)">{letter}</i>', page)) for letter in "BTDHGKFV"}
    assert all(len(found) == 1 for found in shades.values()) and len(set.union(*shades.values())) == 8
    titles = Elements(page).titles
    q = next(title for title in titles if "self.q_norm(self.Wq(x)" in title)
    assert re.match(r"model\.py:\d+  q = self\.q_norm", q) and q.endswith("(3,5,32) → (3,5,4,6)")
    assert any("def attend" in title for title in titles)


def test_html_gives_own_letters_colours_of_their_own():
    layer = nn.Linear(7, 11)
    with trace(layer, names={"P": 7, "Q": 11, "D": 13}) as tr:
        layer(torch.randn(3, 7))
    shades = [re.findall(rf'<i class="(d\d+)">{letter}</i>', tr._repr_html_()) for letter in "PQ"]
    assert all(shades) and len({*shades[0], *shades[1]}) == 2


def test_html_escapes_what_users_write(plain):
    page = plain._repr_html_()
    parsed = Elements(page)
    assert parsed.tags <= {"style", "pre", "details", "summary", "span", "i", "b"}
    assert "<script>" in "".join(parsed.all) and "<script>" not in page
    assert " <b>& " in "".join(parsed.all)


class Wasteful(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.out = nn.Dropout(0.1), nn.Linear(6, 6)
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        self.drop(x)
        return self.out(x)


def test_html_has_badges_for_lints():
    model = Wasteful()
    with trace(model) as tr:
        model(torch.randn(3, 5, 6))
    kinds = [lint.kind for lint in tr.lints]
    page = tr._repr_html_()
    lines = "".join(Elements(page).seen).splitlines()
    assert sorted(kinds) == ["uncalled", "unused"]
    assert "⚠ unused" in next(line for line in lines if " drop " in line) and page.count("⚠ unused") == 1
    assert "⚠" in lines[-1] and "idle" in lines[-1], "what has no row stands below"


def test_a_notebook_gets_text_beside_html(ten):
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    data, _ = formatter.format(ten)
    assert data["text/html"] == ten._repr_html_() and data["text/plain"] == str(ten)


def test_html_of_nothing_and_of_a_failure():
    model = make()
    with trace(model) as tr:
        pass
    assert "nothing recorded" in tr._repr_html_()
    with pytest.raises(IndexError), trace(model) as tr:
        model.embed(torch.tensor([[97]]))
        model(torch.tensor([[1]]))[0, 0].unsqueeze(9)
    Elements(tr._repr_html_())


# ---------------------------------------------------------------------------------------------------- table


def test_records_hold_every_call_and_operation(ten):
    table = json.loads(ten.to_json())
    assert len(table) == sum(1 for call in ten.calls for _ in call.walk())
    assert all(set(record) == set(table[0]) for record in table)
    assert (table[0]["kind"], table[0]["class"], table[0]["depth"]) == ("module", "GPT", 0)
    assert table[0]["flops"] == sum(record["flops"] for record in table if record["kind"] == "op")
    assert table[0]["saved_bytes"] >= sum(record["saved_bytes"] for record in table if record["kind"] == "op") > 0
    q = next(r for r in table if r["path"] == "layers.3.attn.Wq" and r["kind"] == "module")
    assert q["params"] == 768 and q["inputs"] == [[3, 5, 32]] and q["outputs_named"] == ["(B,T,H·K)"]
    assert q["expression"] == "self.Wq(x)" and q["file"] == "model.py" and q["assigned"] == "" and not q["failed"]
    out = next(r for r in table if r["name"] == "attend")
    assert out["assigned"] == "out" and out["kind"] == "function" and out["expression"] == "attend(q, k, v, ctx)"
    assert {r["copied"] for r in table if r["name"] == "transpose"} == {False}


def test_the_data_frame_has_the_same_columns(ten):
    table = ten.df()
    assert list(table.columns) == list(json.loads(ten.to_json())[0]) and len(table) == len(json.loads(ten.to_json()))
    assert list(table[table.kind == "module"].path[:3]) == ["", "embed", "dropout"]


def test_records_of_a_failure():
    model = make()
    model.layers[1].mlp.Wdown = nn.Linear(79, 32)
    with pytest.raises(RuntimeError), trace(model) as tr:
        model(torch.randint(97, (3, 5)))
    failed = [record for record in json.loads(tr.to_json()) if record["failed"]]
    assert [record["depth"] for record in failed] == list(range(len(failed))), "the chain of calls that failed"
    assert failed[-1]["outputs"] == []


# ---------------------------------------------------------------------------------------------------- diff


def changes(found):
    return {change.kind: [c.label.strip(" ▸") for c in found.rows if c.kind == change.kind] for change in found.rows}


def test_equal_traces_do_not_differ(ten):
    found = diff(ten, traced(make(10)))
    assert found.rows == [] and str(found).splitlines()[-1] == "no difference"
    params = sum(p.numel() for p in ten.model.parameters())
    assert str(found).startswith(f"GPT   {params:,} params · ") and str(found).count("→") == 0
    assert "no difference" in found._repr_html_()


def test_diff_of_a_second_norm():
    found = diff(traced(), traced(make(post_norm=True)))
    assert changes(found) == {
        "changed": ["GPT", "features()", "x = layers.0…1 ×2  ResidualLayer"],
        "added": ["attn_post_norm  RMSNorm", "mlp_post_norm  RMSNorm"],
    }
    assert "+ │ │ │ ▸ attn_post_norm  RMSNorm" in str(found) and "32 params" in str(found)
    back = changes(diff(found.b, found.a))
    assert back["removed"] == changes(found)["added"] and "added" not in back


def test_diff_of_head_counts_is_told_in_parameters_not_in_shapes():
    found = diff(traced(), traced(make(num_q_heads=8)))
    assert changes(found) == {
        "changed": [
            "GPT", "features()", "x = layers.0…1 ×2  ResidualLayer", "attn  MQA", "q, k, v = project()", "Wq",
            "q, k = rotate()", "out = attend()", "return   sdpa", "return   Wo",
        ]
    }  # fmt: skip
    line = next(line for line in str(found).splitlines() if " Wq " in line)
    assert re.fullmatch(r"~ .*Wq +\(B,T,D\) → \(B,T,H·K\) +768 → 1,536 params   23.0 kFLOP → 46.1 kFLOP", line)
    assert "sizes: H 4 → 8   B=3 T=5 D=32" in str(found)


def test_diff_of_a_gate_and_of_a_class():
    found = diff(traced(), traced(make(mlp_gated=False)))
    assert changes(found) == {
        "changed": ["GPT", "features()", "x = layers.0…1 ×2  ResidualLayer", "mlp  MLP"],
        "removed": ["Wgate", "hidden   *"],
    }
    found = diff(traced(), traced(make(norm_type="LayerNorm")))
    assert "attn_norm  RMSNorm → LayerNorm" in changes(found)["changed"]
    assert {"y        rms_norm"} < set(changes(found)["removed"]) | {"weight   to"}
    assert set(changes(found)["added"]) == {"return   layer_norm"}


def test_diff_of_depth_names_the_number_of_layers():
    found = diff(traced(), traced(make(4)))
    assert changes(found)["changed"][-1] == "x = layers.0…1 ×2 → layers.0…3 ×4  ResidualLayer"


def test_diff_of_lengths_is_no_difference_in_symbols():
    found = diff(traced(), traced(tokens=(3, 7)))
    assert found.rows == [] and "sizes: T 5 → 7" in str(found) and "no difference in symbols" in str(found)


def test_diff_of_two_modules_with_other_names():
    cfg = ModelConfig(num_layers=1, **BASE)
    traces = []
    for model in (MQA(cfg), MQA(ModelConfig(num_layers=1, **BASE, qk_norm=True))):
        with trace(model, level="module") as tr:
            model(torch.randn(3, 5, 32))
        traces.append(tr)
    assert changes(diff(*traces))["added"] == ["q_norm  RMSNorm", "k_norm  RMSNorm"]
    with trace(MQA(cfg)) as nothing:
        pass
    with pytest.raises(ValueError, match="b recorded nothing"):
        diff(traces[0], nothing)


def test_training_beside_decoding(decoding):
    found = diff(*decoding, side_by_side=True)
    text = str(found)
    rows = {line[2:].replace("│ ", "").split("   ")[0].strip("▸ "): line for line in text.splitlines()[3:]}
    assert re.search(r"GPT B=3 T=5 +GPT B=3 T=1", text)
    assert re.search(r"\(B,H,T,K\) =\(3,4,5,6\) +\(B,H,T,K\) =\(3,4,1,6\)", rows["out = attend()"])
    assert rows["k, v = remember()"].startswith("+ ") and "·" in rows["k, v = remember()"]
    assert rows["ctx = context()"].startswith("- ")
    assert len([line for line in text.splitlines() if " sdpa " in line]) == 1, "common rows stand once"
    shown = sum(len(str(tr).splitlines()) - 1 for tr in decoding)
    assert len(found.rows) < shown
    Elements(found._repr_html_())


def test_diff_of_training_and_decoding(decoding):
    text = str(diff(*decoding))
    assert "inputs differ in T: what changes FLOPs or bytes alone is not listed" in text
    assert "+ │ │ │ │ ▸ k, v = remember()" in text and " mlp " not in text
