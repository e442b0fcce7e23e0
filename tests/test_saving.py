"""Saving and loading: what is written comes back bit for bit, and no fault loses a model or runs foreign code."""

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import PRESETS, ModelConfig, TrainConfig
from lab import files
from lab.files import leftovers, read_json, write_atomic, write_json
from lab.saving import (
    halve_weights,
    list_models,
    load_model,
    load_tensors,
    model_folder,
    read_weights,
    save_model,
    save_tensors,
)
from model import GPT, MQA
from tokenizer import get_tokenizer

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 2013952\n"
BYTE = get_tokenizer("byte")
CFG = ModelConfig(dim=32, num_layers=2, vocab_size=BYTE.vocab_size, max_seq_len=16)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty trained_models/."""
    folder = tmp_path / "trained_models"
    folder.mkdir()
    monkeypatch.setattr(files, "TRAINED_MODELS", folder)
    return folder


@pytest.fixture
def saved(shelf):
    """The folder of a saved model called "tiny"."""
    return save_model(random_model(), BYTE, "tiny", train_config=TrainConfig(), run={"steps": 1})


def random_model(cfg: ModelConfig = CFG, seed: int = 0) -> GPT:
    """A model with every weight random, the zero-initialised ones too."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(cfg)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


def same_weights(one: GPT, other: GPT) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("content", [b"new\x00", "new\u00fc", lambda file: file.write(b"new")])
def test_write_atomic_replaces_a_file_and_makes_its_folder(tmp_path, content):
    path = tmp_path / "a" / "b" / "file.txt"
    for _ in range(2):
        write_atomic(path, content)
        assert path.read_bytes().startswith(b"new")
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def fail_halfway(file):
        file.write(b"ne")
        raise error

    with pytest.raises(type(error)):
        write_atomic(path, fail_halfway)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_written_file_has_the_usual_permissions(tmp_path):
    write_atomic(tmp_path / "atomic", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_keeps_order_and_letters(tmp_path):
    values = {"b": 1, "a": [1.5, None, True], "text": "\u00fc \U0001f600"}
    write_json(tmp_path / "x.json", values)
    assert list(read_json(tmp_path / "x.json").items()) == list(values.items())
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "b": 1,\n') and text.endswith("}\n") and "\u00fc" in text


@pytest.mark.parametrize(
    "value, error", [(float("nan"), ValueError), ({"x": float("inf")}, ValueError), (b"x", TypeError)]
)
def test_what_json_lacks_is_refused_by_name(tmp_path, value, error):
    with pytest.raises(error, match=r"x\.json: loss="):
        write_json(tmp_path / "x.json", {"ok": 1, "loss": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, message",
    [("", "is empty"), (" \n", "is empty"), ('{"a": 1, "b', "is torn or no JSON"), ("[1]", "one JSON object"),
     (b"\xff\xfe\xff", "torn or no JSON"), (LFS_POINTER, "git lfs pull")],
)  # fmt: skip
def test_unreadable_json_is_named(tmp_path, content, message):
    path = tmp_path / "run.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=rf"run\.json.*{message}"):
        read_json(path)


def test_paths_in_the_checkout_are_shown_from_there():
    assert files.shown(files.ROOT / "lab" / "files.py") == "lab/files.py"
    assert Path(__file__).resolve().parent.parent == files.ROOT


# ---------------------------------------------------------------- nested tensors

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
DTYPES = (*FLOATS, torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool)


@st.composite
def tensors(draw) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
    content = draw(st.binary(min_size=size, max_size=size))  # any bits: NaNs and infinities among them
    if dtype == torch.bool:
        content = bytes(byte % 2 for byte in content)
    tensor = torch.tensor(list(content), dtype=torch.uint8).view(dtype) if size else torch.empty(0, dtype=dtype)
    tensor = tensor.reshape(shape)
    return tensor.T if tensor.ndim == 2 and draw(st.booleans()) else tensor


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = st.text(max_size=3) | st.integers() | st.sampled_from(["__metadata__", "a.b", "a", "b", "1", 1])
NESTED = st.recursive(
    SCALARS | tensors(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


def same(a, b) -> bool:
    """Equal in type and bits, all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
    if isinstance(a, dict):
        keys = [[(type(k), k) for k in d] for d in (a, b)]
        return keys[0] == keys[1] and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)  # tells -0.0 from 0.0, and finds NaN equal to NaN


@settings(max_examples=60, deadline=None)
@given(nested=st.dictionaries(KEYS, NESTED, max_size=4))
def test_nested_tensors_come_back_bit_for_bit(nested):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_tensors(path, nested)
        assert same(load_tensors(path), nested)


def test_tensors_that_share_memory_come_back_apart(tmp_path):
    whole = torch.arange(6.0)
    save_tensors(tmp_path / "s", {"whole": whole, "again": whole, "part": whole[2:4], "grid": whole.view(2, 3).T})
    back = load_tensors(tmp_path / "s")
    assert same(back, {"whole": whole, "again": whole, "part": whole[2:4], "grid": whole.view(2, 3).T})
    back["whole"].zero_()  # loaded tensors can be written to
    assert back["again"][5] == 5 and back["part"][0] == 2


def test_optimizer_and_random_state_go_on_exactly(tmp_path):
    def start():
        model = random_model()
        return model, torch.optim.AdamW(model.parameters(), lr=0.01)

    def steps(model, optimizer, count):
        for _ in range(count):
            tokens = torch.randint(CFG.vocab_size, (2, 8))
            optimizer.zero_grad()
            model(tokens).logsumexp(-1).mean().backward()
            optimizer.step()

    torch.manual_seed(3)
    model, optimizer = start()
    steps(model, optimizer, 2)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "step": 2,
    }
    save_tensors(tmp_path / "state.safetensors", state)
    steps(model, optimizer, 2)

    resumed, resumed_optimizer = start()
    state = load_tensors(tmp_path / "state.safetensors")
    resumed.load_state_dict(state["model"])
    resumed_optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    steps(resumed, resumed_optimizer, state["step"])
    assert same_weights(resumed, model)
    assert same(resumed_optimizer.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize(
    "value, place", [({"a": {"b": object()}}, "a.b"), ({"a": [{1, 2}]}, "a.0"), ({(1, 2): 3}, "key")]
)
def test_what_cannot_be_saved_is_named(tmp_path, value, place):
    with pytest.raises(TypeError, match=place):
        save_tensors(tmp_path / "s", value)
    assert not list(tmp_path.iterdir())


def test_load_tensors_refuses_another_kind_of_file(saved):
    with pytest.raises(ValueError, match="not written by save_tensors"):
        load_tensors(saved / "model.safetensors")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_never_ends_in_anything_but_a_clear_error(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_tensors(path, {"a": torch.arange(4), "b": [1, {"c": torch.ones(2, 2)}]})
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        with contextlib.suppress(ValueError):
            load_tensors(path)


# ---------------------------------------------------------------- a model there and back


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied_head": False, "norm_type": "LayerNorm", "norm_bias": True, "mlp_bias": True},
        {"positions": "learned", "qk_norm": True, "post_norm": True},
    ],
)
def test_a_model_comes_back_the_same(shelf, changes):
    model = random_model(CFG.replace(**changes))
    assert save_model(model, BYTE, "tiny") == shelf / "tiny"
    back, tok, cfg = load_model("tiny")
    tokens = torch.tensor([tok.encode("Once upon")])
    assert cfg == model.cfg and tok.fingerprint == BYTE.fingerprint
    assert torch.equal(back(tokens), model.eval()(tokens))
    assert not back.training and all(p.requires_grad and p.dtype == torch.float32 for p in back.parameters())
    assert (back.head.weight is back.embed.weight) == cfg.tied_head


def test_a_shipped_tokenizer_keeps_its_name(shelf):
    tok = get_tokenizer(512)
    save_model(random_model(PRESETS["debug"]), tok, "debug")
    _, back, _ = load_model("debug")
    assert (back.name, back.fingerprint) == (tok.name, tok.fingerprint)
    text = "Tom's caf\u00e9 \U0001f600\n"
    assert back.encode(text) == tok.encode(text)
    assert (shelf / "debug" / "tokenizer.model").is_file()


def test_the_folder_holds_what_the_design_names(saved):
    assert sorted(p.name for p in saved.iterdir()) == [
        "model.safetensors", "model_config.json", "run.json", "tokenizer.json", "train_config.json",
    ]  # fmt: skip
    config = read_json(saved / "model_config.json")
    assert config["format_version"] == 1 and ModelConfig.from_dict(config["model"]) == CFG
    assert config["tokenizer"] == {"name": "byte", "vocab_size": 260, "fingerprint": BYTE.fingerprint}
    assert TrainConfig.from_dict(read_json(saved / "train_config.json")) == TrainConfig()
    assert read_json(saved / "run.json") == {"steps": 1}


def test_halved_weights_are_half_as_long_and_load_as_the_nearest_fp16_numbers_in_fp32(saved):
    before, size = load_model("tiny")[0], (saved / "model.safetensors").stat().st_size
    assert halve_weights("tiny") == saved / "model.safetensors"
    after = load_model("tiny")[0]
    assert (saved / "model.safetensors").stat().st_size < 0.6 * size  # the header stays as long
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        assert new.dtype == torch.float32 and torch.equal(new, old.half().float())
    assert after.head.weight is after.embed.weight  # ties outlive it


def test_weights_too_large_for_fp16_are_left_as_they_are(saved):
    model, tok, _ = load_model("tiny")
    with torch.no_grad():
        model.embed.weight[0, 0] = 70_000
    save_model(model, tok, "tiny")
    before = (saved / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=r"fp16 can't hold numbers of embed\.weight"):
        halve_weights("tiny")
    assert (saved / "model.safetensors").read_bytes() == before


def test_tied_weights_are_stored_once_and_tables_never(saved):
    weights, header = read_weights(saved / "model.safetensors")
    assert set(weights) == {name for name, _ in GPT(CFG).named_parameters()}
    assert header == {"head.weight": "embed.weight"}


def test_layers_that_share_weights_by_hand_keep_them(shelf):
    model = random_model()
    model.layers[1] = model.layers[0]
    save_model(model, BYTE, "shared")
    assert len(read_weights(shelf / "shared" / "model.safetensors")[0]) < len(list(GPT(CFG).named_parameters()))
    assert same_weights(load_model("shared")[0], model)


def test_bf16_and_compiled_models_are_saved_as_fp32(shelf):
    model = random_model().bfloat16()
    save_model(torch.compile(model), BYTE, "half")
    weights, _ = read_weights(shelf / "half" / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}
    assert torch.equal(weights["embed.weight"].bfloat16(), model.embed.weight)


def test_weights_that_are_not_numbers_load_without_a_word(shelf):
    model = random_model()
    with torch.no_grad():
        model.embed.weight[0, 0] = float("nan")
    save_model(model, BYTE, "nan")
    assert load_model("nan")[0].embed.weight[0, 0].isnan()


def test_saving_and_loading_leave_the_random_state_alone(shelf):
    model = random_model()
    before = torch.get_rng_state()
    save_model(model, BYTE, "tiny")
    load_model("tiny")
    assert torch.equal(torch.get_rng_state(), before)


def test_names_and_paths_lead_to_the_same_model(saved, monkeypatch, tmp_path):
    model = load_model("tiny")[0]
    assert same_weights(load_model(saved)[0], model)
    assert same_weights(load_model(str(saved))[0], model)
    monkeypatch.chdir(tmp_path)
    assert same_weights(load_model("trained_models/tiny")[0], model)
    assert same_weights(load_model("./trained_models/tiny")[0], model)
    assert model_folder("tiny") == saved


def test_a_path_object_saves_anywhere(shelf, tmp_path):
    assert save_model(random_model(), BYTE, tmp_path / "else" / "where") == tmp_path / "else" / "where"
    assert same_weights(load_model(tmp_path / "else" / "where")[0], random_model())
    assert list_models() == [] and list_models(tmp_path / "else") == ["where"]


def test_list_models_names_complete_folders_only(saved, shelf):
    (shelf / "empty").mkdir()
    (shelf / "half").mkdir()
    (shelf / "half" / "model_config.json").write_text("{}")
    (shelf / "note.txt").write_text("x")
    shutil.copytree(saved, shelf / ".tiny.0123abcd.tmp")
    assert list_models() == ["tiny"]
    assert list_models(shelf / "nowhere") == []


@pytest.mark.parametrize("name", list_models() or [pytest.param("", marks=pytest.mark.skip("no model is there yet"))])
def test_every_model_of_this_checkout_loads(name):
    model, tok, cfg = load_model(name)
    assert model(torch.tensor([tok.encode("Once")])).shape[-1] == cfg.vocab_size


# ---------------------------------------------------------------- saving again


def test_saving_again_replaces_the_weights(saved):
    newer = random_model(seed=1)
    save_model(newer, BYTE, "tiny", run={"steps": 2})
    assert same_weights(load_model("tiny")[0], newer)
    assert read_json(saved / "run.json") == {"steps": 2} and not temporary_files(saved.parent)


@pytest.mark.parametrize("changes", [{"num_layers": 3}, {"rope_theta": 500.0}])
def test_another_architecture_is_not_mixed_into_a_folder(saved, changes):
    before = snapshot(saved)
    with pytest.raises(ValueError, match=rf"{next(iter(changes))}=.*choose another name"):
        save_model(random_model(CFG.replace(**changes)), BYTE, "tiny")
    assert snapshot(saved) == before


def test_another_tokenizer_is_not_mixed_into_a_folder(shelf):
    cfg = CFG.replace(vocab_size=512)
    save_model(random_model(cfg), get_tokenizer(512), "tiny")
    other = get_tokenizer(512)
    other.fingerprint = "0123456789abcdef"
    with pytest.raises(ValueError, match=r"tokenizer .* there, 0123456789abcdef here"):
        save_model(random_model(cfg), other, "tiny")


def test_a_folder_without_weights_takes_any_model(shelf):
    """Training makes the folder for its log and checkpoints before there is a model to save."""
    folder = save_model(random_model(CFG.replace(vocab_size=512)), get_tokenizer(512), "tiny")
    (folder / "model.safetensors").unlink()
    (folder / "log_data.csv").write_text("Step\n1\n")
    save_model(random_model(), BYTE, "tiny")
    assert same_weights(load_model("tiny")[0], random_model())
    assert (folder / "log_data.csv").is_file() and not (folder / "tokenizer.model").exists()


def test_weights_without_a_config_are_not_overwritten(saved):
    (saved / "model_config.json").unlink()
    before = snapshot(saved)
    with pytest.raises(ValueError, match="holds weights but no model_config"):
        save_model(random_model(), BYTE, "tiny")
    assert snapshot(saved) == before


# ---------------------------------------------------------------- models that cannot be saved


@pytest.mark.parametrize("name", ["..", "../evil", "a/b", "/evil", "a\\b", "", ".hidden", "nul", "a b", "x."])
def test_a_name_that_leads_elsewhere_is_refused(shelf, name):
    with pytest.raises(ValueError, match="name="):
        save_model(random_model(), BYTE, name)
    assert not list(shelf.iterdir()) and [p.name for p in shelf.parent.iterdir()] == ["trained_models"]


def test_a_vocabulary_other_than_the_tokenizers_is_refused(shelf, saved):
    with pytest.raises(ValueError, match=r"vocab_size=300 .* tokenizer's 260"):
        save_model(random_model(CFG.replace(vocab_size=300)), BYTE, "other")
    assert list_models() == ["tiny"]
    edit_config(saved, lambda c: c["model"].update(vocab_size=300))
    with pytest.raises(ValueError, match=r"tiny: vocab_size=300 .* tokenizer's 260"):
        load_model("tiny")


def test_a_model_that_its_config_does_not_describe_is_refused(shelf):
    model = random_model()
    model.layers.append(GPT(CFG).layers[0])
    with pytest.raises(ValueError, match=r"not what GPT\(model.cfg\) builds.*layers\.2"):
        save_model(model, BYTE, "tiny")
    with pytest.raises(ValueError, match="model=MQA"):
        save_model(MQA(CFG), BYTE, "tiny")
    assert not list(shelf.iterdir())


def test_a_run_record_that_json_cannot_hold_costs_nothing(saved):
    before = snapshot(saved)
    with pytest.raises(ValueError, match=r"run\.json: loss=nan"):
        save_model(random_model(seed=1), BYTE, "tiny", run={"loss": float("nan")})
    assert snapshot(saved) == before


# ---------------------------------------------------------------- faults on the disk


class FullDisk:
    """Stands in for `open`: the disk is full as soon as half of the named file is written."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, path, mode):
        file = open(path, mode)  # noqa: SIM115
        return HalfFile(file) if self.name in path.name else file


class HalfFile:
    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


WRITTEN = ("model_config.json", "train_config.json", "model.safetensors", "run.json")


@pytest.mark.parametrize("file", WRITTEN)
def test_a_full_disk_leaves_a_model_that_loads(saved, monkeypatch, file):
    before, newer = snapshot(saved), random_model(seed=1)
    monkeypatch.setattr(files, "open", FullDisk(file), raising=False)
    with pytest.raises(OSError, match=r"make room and save again.*unchanged.*" + file) as error:
        save_model(newer, BYTE, "tiny", train_config=TrainConfig(), run={"steps": 2})
    assert error.value.errno == errno.ENOSPC and str(error.value).count("make room") == 1
    monkeypatch.undo()
    weights_are_new = file == "run.json"  # which comes last
    assert (snapshot(saved) == before) != weights_are_new
    assert same_weights(load_model(saved)[0], newer if weights_are_new else random_model())
    assert not temporary_files(saved.parent)


@pytest.mark.parametrize("file", WRITTEN)
def test_a_full_disk_leaves_nothing_of_a_new_model(shelf, monkeypatch, file):
    monkeypatch.setattr(files, "open", FullDisk(file), raising=False)
    with pytest.raises(OSError, match="make room"):
        save_model(random_model(), BYTE, "tiny", train_config=TrainConfig(), run={})
    assert not list(shelf.iterdir())


@pytest.fixture
def not_root():
    """Runs the test as an ordinary user where it was started by root, to whom no folder is read-only."""
    if os.name == "nt":
        pytest.skip("Windows has other permissions")
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.mark.parametrize("kind", ["new model", "old model"])
def test_a_read_only_folder_gives_one_clear_error(kind, request):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        folder.chmod(0o755)
        target = folder / "tiny"
        if kind == "old model":
            save_model(random_model(), BYTE, target)
        for path in [folder, *folder.iterdir()]:
            path.chmod(0o555)
        before = snapshot(folder)
        request.getfixturevalue("not_root")
        with pytest.raises(PermissionError, match=r"read-only: save to another folder.*tiny"):
            save_model(random_model(), BYTE, target)
        assert snapshot(folder) == before
        if os.getuid() == 0:
            os.seteuid(0)
        for path in [folder, *folder.iterdir()]:
            path.chmod(0o755)


def test_a_file_in_the_folders_place_is_not_replaced(shelf):
    (shelf / "tiny").write_text("mine")
    with pytest.raises(NotADirectoryError, match="tiny is a file"):
        save_model(random_model(), BYTE, "tiny")
    with pytest.raises(NotADirectoryError, match="tiny is a file"):
        load_model("tiny")
    assert (shelf / "tiny").read_text() == "mine"


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
from config import ModelConfig
from lab.saving import load_model, list_models, save_model
from model import GPT
from tokenizer import get_tokenizer

torch.set_num_threads(1)
shelf, tok = Path(sys.argv[2]), get_tokenizer("byte")
model = GPT(ModelConfig(dim=32, num_layers=2, vocab_size=tok.vocab_size, max_seq_len=16))

def save(number, folder):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(number)
    save_model(model, tok, folder, run={"number": number})

def check(folder):
    values = {v.item() for w in load_model(folder)[0].parameters() for v in w.unique()}
    assert len(values) == 1, f"old and new weights are mixed: {values}"
    return values.pop()

def kill_while_saving(first, folder_of):
    done, report = os.pipe()
    child = os.fork()
    if child == 0:
        number = first
        while True:
            save(number, folder_of(number))
            os.write(report, b".")
            number += 1
    os.read(done, 1)  # after one whole save, kill at any moment of the next two
    time.sleep(random.uniform(0, 2 * seconds_of_a_save))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

random.seed(0)
again, last, torn = shelf / "again", 0, 0
save(0, again)
start = time.perf_counter()
save(0, again)
seconds_of_a_save = time.perf_counter() - start
for _ in range(15):  # the same folder over and over
    kill_while_saving(last + 1, lambda number: again)
    torn += any(p.name.endswith(".tmp") for p in again.iterdir())
    number = check(again)
    assert number > last, f"the weights {number} are no newer than {last}"
    last = int(number)
save(last + 1, again)
assert check(again) == last + 1
assert not [p for p in again.iterdir() if p.name.endswith(".tmp")]

for _ in range(6):  # a new folder each time
    known = set(list_models(shelf))
    kill_while_saving(len(known), lambda number: shelf / f"new{number}")
    torn += any(p.name.endswith(".tmp") for p in shelf.iterdir())
    for name in set(list_models(shelf)) - known:
        check(shelf / name)
    visible = {p.name for p in shelf.iterdir() if not p.name.startswith(".")}
    assert visible == set(list_models(shelf)), "a half-written folder can be seen"
print(torn)  # kills that came in the middle of a save
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, to start and kill many processes quickly")
def test_a_killed_save_leaves_the_old_model_or_the_new(tmp_path):
    command = [sys.executable, "-c", KILLS, str(files.ROOT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0, "no kill came while a save was going on"


def test_the_next_save_removes_what_a_killed_one_left(saved, shelf):
    (saved / ".model.safetensors.0123abcd.tmp").write_bytes(b"half")
    shutil.copytree(saved, shelf / ".tiny.0123abcd.tmp")
    shutil.copytree(saved, shelf / ".tiny2.0123abcd.tmp")  # another model's, perhaps just being written
    save_model(random_model(), BYTE, "tiny")
    assert [p.name for p in temporary_files(shelf) if p.parent == shelf] == [".tiny2.0123abcd.tmp"]
    assert not leftovers(saved)


# ---------------------------------------------------------------- models that cannot be loaded


def edit_config(folder: Path, change) -> None:
    config = read_json(folder / "model_config.json")
    change(config)
    write_json(folder / "model_config.json", config)


def edit_weights(folder: Path, change) -> None:
    weights, header = read_weights(folder / "model.safetensors")
    change(weights)
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(weights, header))


def test_an_unknown_name_lists_the_models_and_the_nearest(shelf):
    with pytest.raises(FileNotFoundError, match="holds no model yet"):
        load_model("tiny")
    save_model(random_model(), BYTE, "tiny")
    with pytest.raises(FileNotFoundError, match=r"name='tinny' .*did you mean 'tiny'\? It holds: tiny"):
        load_model("tinny")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_model("some/where")
    with pytest.raises(ValueError, match=r"name='\.\.'"):
        load_model("..")


@pytest.mark.parametrize("file", ["model_config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(saved, file):
    (saved / file).unlink()
    with pytest.raises(FileNotFoundError, match=file.replace(".", r"\.")):
        load_model("tiny")


def test_an_empty_or_unfinished_folder_says_so(shelf):
    (shelf / "tiny").mkdir()
    with pytest.raises(FileNotFoundError, match=r"tiny holds no model_config\.json"):
        load_model("tiny")
    (shelf / "tiny" / "checkpoint").mkdir()
    with pytest.raises(FileNotFoundError, match="only a checkpoint"):
        load_model("tiny")


@pytest.mark.parametrize("file", ["model_config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage, message", [("empty", "empty|not a readable"), ("pointer", "lfs pull|not a readable"),
                                             ("torn", "torn|cut short|not a readable")])  # fmt: skip
def test_damaged_files_are_named(saved, file, damage, message):
    content = (saved / file).read_bytes()
    damaged = {"empty": b"", "pointer": LFS_POINTER.encode(), "torn": content[: len(content) // 2]}[damage]
    (saved / file).write_bytes(damaged)
    with pytest.raises(ValueError, match=rf"{file}.*({message})"):
        load_model("tiny")


def test_every_truncation_of_the_header_is_noticed(saved):
    content = (saved / "model.safetensors").read_bytes()
    for length in [*range(1, 40), 500, len(content) - 1]:
        (saved / "model.safetensors").write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut short"):
            load_model("tiny")


class Trap:
    """Pickled, it makes a file when it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [lambda trap, path: torch.save({"embed.weight": trap}, path),
                                   lambda trap, path: path.write_bytes(pickle.dumps(trap, protocol=2)),
                                   lambda trap, path: path.write_bytes(pickle.dumps(trap, protocol=5))])  # fmt: skip
@pytest.mark.parametrize("file", ["model.safetensors", "model.pt", "pytorch_model.bin"])
def test_a_pickle_is_refused_and_never_opened(saved, tmp_path, write, file):
    sprung = tmp_path / "sprung"
    (saved / "model.safetensors").unlink()
    write(Trap(sprung), saved / file)
    with pytest.raises(ValueError, match="pickle can run code"):
        load_model("tiny")
    assert not sprung.exists()
    content = (saved / file).read_bytes()
    torch.load(io.BytesIO(content), weights_only=False) if content.startswith(b"PK") else pickle.loads(content)
    assert sprung.exists()  # so the trap was a real one


def test_a_folder_with_nothing_but_a_pickle_says_so(shelf):
    (shelf / "tiny").mkdir()
    torch.save({}, shelf / "tiny" / "model.pt")
    with pytest.raises(ValueError, match=r"only model\.pt; a pickle can run code"):
        load_model("tiny")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(format_version=2), "format_version=2 was saved by newer code.*git pull"),
        (lambda c: c.pop("format_version"), "has no format_version"),
        (lambda c: c["model"].update(num_layer=2), "no field 'num_layer'; did you mean 'num_layers'.*newer code"),
        (lambda c: c["model"].update(num_kv_heads=3), r"model_config\.json: num_kv_heads=3 must divide"),
        (lambda c: c["model"].update(dim="wide"), "dim='wide' must be of type int"),
        (lambda c: c.pop("model"), "must hold a 'model'"),
        (lambda c: c.update(tokenizer="byte"), "a 'tokenizer' with its 'fingerprint'"),
        (lambda c: c["tokenizer"].update(fingerprint="0" * 16), "trained with 0000000000000000 .byte.: put that one"),
        (lambda c: c["model"].update(num_layers=3), r"missing: layers\.2\."),
        (lambda c: c["model"].update(num_layers=1), r"not expected: layers\.1\..* more"),
        (
            lambda c: c["model"].update(mlp_hidden=50),
            r"another shape: layers\.0\.mlp\.\w+\.weight is \(.*\), not \(50, 32\)",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused(saved, change, message):
    edit_config(saved, change)
    with pytest.raises(ValueError, match=message):
        load_model("tiny")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("final_norm.weight"), "missing: final_norm.weight"),
        (lambda w: w.pop("embed.weight"), "missing: embed.weight, head.weight"),
        (lambda w: w.update(extra=torch.ones(1)), "not expected: extra"),
        (lambda w: w.update({"final_norm.weight": torch.ones(3)}), r"final_norm.weight is \(3,\), not \(32,\)"),
        (
            lambda w: w.update({"final_norm.weight": torch.ones(32).int()}),
            "another type: final_norm.weight is torch.int32",
        ),
        (lambda w: w.update({"head.weight": w["embed.weight"] + 1}), "ties head.weight to embed.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved, change, message):
    edit_weights(saved, change)
    with pytest.raises(ValueError, match=message):
        load_model("tiny")


def test_both_copies_of_a_tied_weight_are_welcome_if_equal(saved):
    edit_weights(saved, lambda w: w.update({"head.weight": w["embed.weight"].clone()}))
    assert same_weights(load_model("tiny")[0], random_model())


def test_a_config_written_by_older_code_gets_the_defaults(saved):
    edit_config(saved, lambda c: c["model"].pop("post_norm"))
    assert load_model("tiny")[2] == CFG
    save_model(random_model(seed=1), BYTE, "tiny")  # and counts as the same architecture
    assert "post_norm" in json.loads((saved / "model_config.json").read_text())["model"]
