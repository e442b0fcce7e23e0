"""lab/plots.py: what is read from logs, what is drawn, what is said about models that can't be compared."""

import math
import warnings

import matplotlib
import pytest
import torch

from config import ModelConfig
from lab import files, plots
from lab.evaluation import evaluate_saved
from lab.runs import COLUMNS
from lab.saving import save_model
from model import GPT
from tokenizer import ByteTokenizer

matplotlib.use("agg")

STEPS = range(0, 1001, 100)


def write_log(name, *, offset=0.0, columns=COLUMNS):
    folder = files.TRAINED_MODELS / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = [",".join(columns)]
    for step in STEPS:
        bits = 1 + offset + math.exp(-step / 300)
        values = dict.fromkeys(COLUMNS, 1.0) | {
            "Step": step, "Train Loss": bits if step else math.nan, "Validation Loss": 2 * bits, "Bits Per Byte": bits,
            "Tokens Seen": step * 4096, "Time Elapsed": step / 10, "Learning Rate": 0.001 * (1 - step / 1000),
        }  # fmt: skip
        lines.append(",".join(repr(values[column]) for column in columns))
    (folder / "log_data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_facts(name, *, tokenizer="bpe_2048", text="stories.txt"):
    folder = files.TRAINED_MODELS / name
    record = {"name": tokenizer, "vocab_size": 9, "fingerprint": f"{tokenizer}-fingerprint"}
    files.write_json(folder / "model_config.json", {"format_version": 1, "model": {}, "tokenizer": record})
    files.write_json(folder / "run.json", {"text": {"name": text, "fingerprint": f"{text}-fingerprint"}})


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TRAINED_MODELS", tmp_path / "trained_models")
    for name, offset in (("small", 0.1), ("small-seed2", 0.12), ("wide", 0.0)):
        write_log(name, offset=offset)
        write_facts(name)
    return files.TRAINED_MODELS


def texts(figure):
    """Everything that is written in a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def lines(figure):
    return figure.axes[0].get_lines()


# ---------------------------------------------------------------- reading logs


def test_log_is_read(models):
    log = plots.read_log("small")
    assert list(log.columns) == list(COLUMNS)
    assert log["Step"].tolist() == list(STEPS)
    assert math.isnan(log["Train Loss"][0])


@pytest.mark.parametrize("torn", ["1100,0.001", "1100" + ",0.5" * 8 + ",0.12", "1100,0.0\n", "1"])
def test_torn_last_line_is_skipped_with_a_note(models, torn):
    with open(models / "small" / "log_data.csv", "a", encoding="utf-8") as file:
        file.write(torn)
    with pytest.warns(UserWarning, match=r"small/log_data.csv: its last line is torn and was skipped \(line 13\)"):
        log = plots.read_log("small")
    assert log["Step"].tolist() == list(STEPS)


def test_whole_log_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.read_log("small")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows yet"),
        ("Step,Bits Per Byte\n", "holds no rows yet"),
        ("Step,Bits Per Byte\n0,x\n1,1\n", "line 2 must hold numbers only"),
        ("Step,Bits Per Byte\n0,1\n1\n2,1\n", "line 3 has 1 cells and the header 2"),
    ],
)
def test_damaged_logs_say_where(models, content, message):
    (models / "small" / "log_data.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        plots.read_log("small")


def test_missing_things_are_named(models):
    with pytest.raises(ValueError, match=r"no column 'Bits per Bite'; did you mean 'Bits Per Byte'\? It has: Step, "):
        plots.plot_column_from_csv("small", y="Bits per Bite")
    write_log("old", columns=("Step", "Train Loss"))
    with pytest.raises(ValueError, match=r"old: log_data.csv has no column 'Validation Loss'.*It has: Step, Train"):
        plots.plot_column_from_csv("old")
    (models / "wide" / "log_data.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"wide/log_data.csv: there is no such file"):
        plots.read_log("wide")


def test_unknown_model_suggests_the_nearest(models):
    for name in ("small", "wide"):
        (models / name / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="'smal': no such model; did you mean 'small'"):
        plots.plot_column_from_csv(["wide", "smal"])


# ---------------------------------------------------------------- curves


def test_curves_hold_the_numbers_of_the_logs():
    figure = plots.plot_column_from_csv(["small", "wide"], x="Tokens Seen", y="Bits Per Byte")
    assert [line.get_label() for line in lines(figure)] == ["small", "wide"]
    for line, name in zip(lines(figure), ("small", "wide")):
        log = plots.read_log(name)
        assert line.get_xdata().tolist() == log["Tokens Seen"].tolist()
        assert line.get_ydata().tolist() == log["Bits Per Byte"].tolist()
    assert "bits per byte of the validation text" in texts(figure)
    assert "tokens seen in training" in texts(figure)


@pytest.mark.parametrize("x", ["FLOPs", "Training FLOPs"])
def test_flops_are_three_forward_passes_over_the_tokens_seen(real_models, x):
    from lab.costs import flops_per_token
    from lab.saving import load_model

    write_log("real")
    figure = plots.plot_column_from_csv("real", x=x, y="Bits Per Byte")
    per_token = flops_per_token(load_model("real")[0])
    expected = [3 * per_token * 4096 * step for step in STEPS]
    assert lines(figure)[0].get_xdata().tolist() == pytest.approx(expected)
    assert "tokens seen × 3 × FLOPs of a forward pass per token" in texts(figure)


def test_a_path_or_one_name_will_do(models):
    for one in ("small", models / "small", ["small"]):
        (line,) = lines(plots.plot_column_from_csv(one))
        assert len(line.get_xdata()) == len(STEPS)


def test_trim_drops_the_first_points():
    (line,) = lines(plots.plot_column_from_csv("small", trim_percentage=30))
    assert line.get_xdata().tolist() == list(STEPS)[3:]
    (line,) = lines(plots.plot_column_from_csv("small", trim_percentage=99))
    assert len(line.get_xdata()) == 1


def test_smoothing_is_a_mean_of_the_last_rows():
    (line,) = lines(plots.plot_column_from_csv("small", smooth=2))
    raw = plots.read_log("small")["Validation Loss"]
    assert line.get_ydata()[0] == raw[0]
    assert line.get_ydata()[5] == pytest.approx((raw[4] + raw[5]) / 2)


def test_logarithmic_axes_leave_out_zero():
    figure = plots.plot_column_from_csv("small", log_x=True, log_y=True)
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    assert lines(figure)[0].get_xdata().tolist() == list(STEPS)[1:]


def test_missing_numbers_are_left_out():
    (line,) = lines(plots.plot_column_from_csv("small", y="Train Loss"))
    assert line.get_xdata().tolist() == list(STEPS)[1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": []}, "models=\\[\\]"),
        ({"trim_percentage": 100}, "trim_percentage=100"),
        ({"trim_percentage": -1}, "trim_percentage=-1"),
        ({"smooth": 0}, "smooth=0"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        plots.plot_column_from_csv(**{"models": ["small"], **options})


def test_seeds_share_a_colour_and_a_label():
    figure = plots.plot_column_from_csv(["small", "small-seed2", "wide"])
    first, second, other = (line.get_color() for line in lines(figure))
    assert first == second != other
    assert "small (2 seeds)" in texts(figure)
    assert "small-seed2" not in texts(figure)


def test_many_models_get_distinct_colours_and_a_legend():
    names = [f"model{i}" for i in range(12)]
    for name in names:
        write_log(name)
    figure = plots.plot_column_from_csv(names)
    assert len({tuple(matplotlib.colors.to_rgb(line.get_color())) for line in lines(figure)}) == 12
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == names


def test_panels_show_the_same_curves_against_several_measures(monkeypatch):
    monkeypatch.setattr(plots, "_flops_per_token", lambda folder: {"wide": 200.0}.get(folder.name, 100.0))
    names = ["small", "small-seed2", "wide"]
    figure = plots.plot_curves(names, trim_percentage=0)
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "optimizer steps", "tokens seen in training", "training time (seconds)",
        "FLOPs of training (tokens seen × 3 × FLOPs of\na forward pass per token)",
    ]  # fmt: skip
    for ax in figure.axes:
        assert [line.get_label() for line in ax.get_lines()] == names
    flops = [line.get_xdata()[-1] for line in figure.axes[3].get_lines()]
    assert flops == [3 * 100 * 1000 * 4096] * 2 + [3 * 200 * 1000 * 4096]  # forward once, backward twice
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["small (2 seeds)", "wide"]
    assert len([ax for ax in plots.plot_curves(names, xs=["Step"]).axes if ax.get_visible()]) == 1
    with pytest.raises(ValueError, match="models=\\[\\]"):
        plots.plot_curves([])


# ---------------------------------------------------------------- what can't be compared


@pytest.mark.parametrize("column", ["Train Loss", "Validation Loss", "Perplexity"])
def test_other_tokenizers_are_said_on_axes_per_token(column):
    write_facts("wide", tokenizer="bpe_4096")
    figure = plots.plot_column_from_csv(["small", "wide"], y=column)
    assert "Different tokenizers (bpe_2048: small; bpe_4096: wide)" in texts(figure).replace("\n", " ")
    assert "wide\nbpe_4096" in texts(figure)
    assert len({line.get_linestyle() for line in lines(figure)}) == 2


def test_bits_per_byte_compare_across_tokenizers():
    write_facts("wide", tokenizer="bpe_4096")
    figure = plots.plot_column_from_csv(["small", "wide"], y="Bits Per Byte")
    assert "Different tokenizers" not in texts(figure)
    assert {line.get_linestyle() for line in lines(figure)} == {"-"}


def test_same_tokenizer_needs_no_note():
    assert "ifferent" not in texts(plots.plot_column_from_csv(["small", "wide"]))


def test_same_name_of_two_tokenizers_is_told_apart(models):
    path = models / "wide" / "model_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("bpe_2048-fingerprint", "fedcba98"), encoding="utf-8")
    figure = plots.plot_column_from_csv(["small", "wide"])
    assert "bpe_2048 [bpe_20]: small; bpe_2048 [fedcba]: wide" in texts(figure).replace("\n", " ")


@pytest.mark.parametrize("column", ["Validation Loss", "Bits Per Byte"])
def test_other_text_is_said(column):
    write_facts("wide", text="storyworld")
    figure = plots.plot_column_from_csv(["small", "wide"], y=column)
    assert "Trained on different text (stories.txt: small; storyworld: wide)" in texts(figure).replace("\n", " ")


# ---------------------------------------------------------------- labels


def test_labels_keep_their_order_and_distance():
    wanted = [0.5, 0.9, 0.51, 0.1, 0.505]
    placed = plots.spread(wanted, gap=0.1)
    assert sorted(range(5), key=placed.__getitem__) == sorted(range(5), key=wanted.__getitem__)
    heights = sorted(placed)
    assert all(b - a > 0.1 - 1e-9 for a, b in zip(heights, heights[1:]))
    assert placed[1] == 0.9 and placed[3] == 0.1  # these had room
    assert placed[4] == pytest.approx(0.505)  # the middle of the three that had to make way


def test_labels_stay_within_the_axes_where_there_is_room():
    assert plots.spread([1.2, 0.99, -0.3, 0.0], gap=0.1) == pytest.approx([1.0, 0.9, 0.0, 0.1])


# ---------------------------------------------------------------- one run


def test_loss_curve_is_drawn_and_saved(models):
    path = plots.save_loss_curve("small")
    assert path == models / "small" / "loss_curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    figure = plots.loss_figure(plots.read_log("small"), "small")
    assert len(figure.axes) == 2
    assert [len(line.get_xdata()) for line in lines(figure)] == [len(STEPS) - 1, len(STEPS)]


def test_drawing_again_replaces_the_first_drawing():
    log = plots.read_log("small")
    figure = plots.loss_figure(log)
    plots.draw_loss_curve(*figure.axes[:1], log, figure.axes[1])
    assert len(lines(figure)) == 2
    assert len(figure.axes[1].get_lines()) == 1


def test_one_point_can_be_drawn():
    plots.loss_figure(plots.read_log("small").head(1))


# ---------------------------------------------------------------- tables and scores


@pytest.fixture
def real_models(models):
    tok = ByteTokenizer()
    record = {"text": {"name": "stories.txt", "fingerprint": "0"}, "tokens_seen": 4096, "epochs": 0.5, "seconds": 2.0}
    for seed, name in enumerate(("real", "real-seed2", "untied")):
        torch.manual_seed(seed)
        cfg = ModelConfig(dim=16, num_layers=1, vocab_size=260, max_seq_len=32, tied_head=name != "untied")
        save_model(GPT(cfg), tok, name, run=record)
        evaluate_saved(name, ["abc", "the story"], text="stories.txt", save=True)
    return ["real", "real-seed2", "untied"]


def test_table_counts_parameters_and_quotes_results(real_models):
    table = plots.compare_table(real_models)
    model = GPT(ModelConfig(dim=16, num_layers=1, vocab_size=260, max_seq_len=32))
    row = table.loc["real"]
    assert row["parameters"] == sum(p.numel() for p in model.parameters()) == row["embedding"] + row["other"]
    assert row["embedding"] == 260 * 16
    assert table.loc["untied", "embedding"] == 2 * 260 * 16
    assert table.loc["untied", "other"] == row["other"]
    assert row["tokens/s"] == 2048
    assert row["measured on"] == "stories.txt, 2 documents"
    assert 7 < row["bits per byte"] < 9


def test_shown_table_says_once_what_all_rows_share(real_models):
    table = plots.compare_table(real_models)
    shown = plots.Table(table)
    for text in (repr(shown), shown._repr_html_()):
        assert "4,160" in text
        assert text.count("stories.txt, 2 documents") == text.count("tokenizer: byte") == 1
    table.loc["real", ["trained on", "tokens seen"]] = ["<b>", math.nan]
    assert "&lt;b&gt;" in plots.Table(table)._repr_html_()
    assert "nan" not in repr(plots.Table(table)).lower()


def test_table_without_an_evaluation_quotes_the_validation(models, real_models):
    final = {"bits_per_byte": 1.5, "documents": 200}
    save_model(GPT(ModelConfig(dim=16, num_layers=1, vocab_size=260)), ByteTokenizer(), "new", run={"final": final})
    table = plots.compare_table(["new", "real"])
    assert table.loc["new", "bits per byte"] == 1.5
    assert table.loc["new", "measured on"] == "validation in training, 200 documents"
    assert math.isnan(table.loc["new", "tokens seen"])
    given = {"new": {"bits_per_byte": 0.9, "text": "other.txt", "documents": 3}}
    row = plots.compare_table(["new"], given).loc["new"]
    assert (row["bits per byte"], row["measured on"]) == (0.9, "other.txt, 3 documents")


def test_seeds_are_found(real_models):
    assert plots.with_seeds(["untied", "real", "gone"]) == ["untied", "real", "real-seed2", "gone"]


def test_samples_side_by_side(real_models):
    columns = plots.samples(real_models[:2], "Once", max_new_tokens=5, seed=1)
    assert list(columns.texts) == real_models[:2]
    assert all(text.startswith("Once") for text in columns.texts.values())
    assert "<th" in columns._repr_html_()
