"""What tools that look into a forward pass show of the same block, and what they cost: a table in Markdown.

    python benchmarks/tracers.py
    pip install -r benchmarks/requirements.txt        # compared with where installed; none is needed

The block is a grouped-query `ResidualLayer` (B=2 T=16 D=64 H=8 G=2 K=16 F=128); times are those of ten such layers in a
GPT. Every cell is found by running the tool and searching what it gave, not by knowing the tool. Each tool runs in a
process of its own, because some leave changes in PyTorch, and is asked with the options under which it tells most.

- Times are processor time on one thread, so that other work on the machine matters little. Plain and traced forward
  passes take turns; quoted is the median of the ratios over `--rounds` rounds, with the smallest and the largest.
- "yes": in the text that the tool prints. "in its data": not printed, but held by the object it returns.
- torchview draws a picture; its text is taken to be what stands in the picture's boxes, one line per box, and its time
  leaves out Graphviz's rendering. lovely-tensors describes one tensor: here each module's output, by a forward hook.
- The failing forward adds a mask for 8 tokens to the logits of 16. Counted is what a tool adds to Python's traceback:
  notes on the exception, its own message, and what it printed.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import inspect
import io
import json
import re
import statistics
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from config import ModelConfig  # noqa: E402
from model import GPT, MQA, Context, ResidualLayer, attend, make_context  # noqa: E402
from tools import log_io, trace  # noqa: E402

B, T = 2, 16
CFG = ModelConfig(dim=64, num_layers=10, num_q_heads=8, num_kv_heads=2, head_dim=16, mlp_hidden=128)
YES, HELD, NO = "yes", "in its data", "–"


# ---------------------------------------------------------------- the blocks, and the truth about them


class AttentionByHand(MQA):
    """`MQA` with softmax and mask written out; the causal mask is made for `length` tokens."""

    def __init__(self, cfg: ModelConfig, length: int):
        super().__init__(cfg)
        self.register_buffer("mask", torch.full((length, length), -torch.inf).triu(1), persistent=False)

    @log_io
    def forward(self, x: Tensor, ctx: Context | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        q, k, v = self.project(x, make_context(self.cfg, x))
        k, v = (t.repeat_interleave(self.cfg.num_q_heads // self.cfg.num_kv_heads, dim=1) for t in (k, v))
        mask = self.mask
        logits = q @ k.transpose(-1, -2) * self.cfg.head_dim**-0.5  # (B, H, T, S)
        weights = (logits + mask).softmax(dim=-1)
        return self.Wo((weights @ v).transpose(1, 2).flatten(2))  # (B, T, D)


def fused_layer() -> nn.Module:
    """The residual layer of the table, whose attention is one fused call."""
    return ResidualLayer(CFG).eval()


def layer_by_hand(mask_length: int = T) -> nn.Module:
    """The same layer with attention written out; it raises for any `mask_length` other than T."""
    layer = ResidualLayer(CFG)
    layer.attn = AttentionByHand(CFG, mask_length)
    return layer.eval()


def activations() -> Tensor:
    return torch.randn(B, T, CFG.dim, generator=torch.Generator().manual_seed(0))  # (B, T, D)


def closed_form_flops() -> int:
    """Floating-point operations of the layer's matrix products, two for each multiplication and addition."""
    D, H, G, K, F = CFG.dim, CFG.num_q_heads, CFG.num_kv_heads, CFG.head_dim, CFG.mlp_hidden
    return 2 * B * T * (2 * D * H * K + 2 * D * G * K + 3 * D * F) + 4 * B * H * T * T * K


def bytes_saved(layer: nn.Module, x: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass, each storage counted once, parameters left out."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(x)  # kept until the end, so that no address is used twice
    for parameter in layer.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    del output
    return sum(kept.values())


class CallCounter(TorchFunctionMode):
    """Names of the torch functions and operators that Python code called and that gave tensors."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if any(isinstance(item, Tensor) for item in (output if isinstance(output, tuple | list) else [output])):
            self.names.append(func.__name__)
        return output


def true_operations(layer: nn.Module, x: Tensor) -> list[str]:
    with CallCounter() as counter:
        layer(x)
    return counter.names


# ---------------------------------------------------------------- the tools


@dataclass
class Seen:
    """What a tool gave of one forward pass."""

    text: str  # what it prints
    data: str = ""  # what else its object holds about operations, as text
    operations: list[str] = field(default_factory=list)  # names of operations, and classes of modules without children
    params: int | None = None
    flops: int | None = None
    saved: int | None = None  # bytes for the backward pass


@dataclass
class Tool:
    """How to ask a tool. Each function takes a module and its input."""

    ways: dict[str, Callable[[nn.Module, Tensor], Any]]  # name of a setting -> trace one forward pass
    text: Callable[[Any], str]  # from what `ways` gave to what is printed
    look: Callable[[nn.Module, Tensor], Seen]
    fail: Callable[[nn.Module, Tensor], Any]  # trace a forward pass that raises


def plain_pytorch() -> Tool:
    def run(model: nn.Module, x: Tensor) -> Tensor:
        return model(x)

    return Tool({"": run}, lambda _: "", lambda model, x: Seen(""), run)


def this_project() -> Tool:
    def run(model: nn.Module, x: Tensor, **options: Any) -> Any:
        with trace(model, names=CFG, **options) as tr:
            model(x)
        return tr

    def look(model: nn.Module, x: Tensor) -> Seen:
        tr = run(model, x, level="op", stats=True)
        text = str(tr)
        kilo = {"B": 1, "KiB": 1024, "MiB": 1024**2, "": 1, "k": 10**3, "M": 10**6, "G": 10**9}
        header = text.partition("\n")[0].replace(",", "")
        params = re.search(r"(\d+) params", header)
        flops = re.search(r"([\d.]+) ([kMG]?)FLOP", header)
        saved = re.search(r"([\d.]+) (B|KiB|MiB) saved", header)
        return Seen(
            text,
            operations=[item.name for call in tr.calls for item in call.walk() if type(item).__name__ == "Op"],
            params=params and int(params[1]),
            flops=flops and round(float(flops[1]) * kilo[flops[2]]),
            saved=saved and round(float(saved[1]) * kilo[saved[2]]),
        )

    ways = {
        "default": run,
        "probe=False": lambda model, x: run(model, x, probe=False),
        'level="op"': lambda model, x: run(model, x, level="op"),
    }

    def fail(model: nn.Module, x: Tensor) -> None:
        tr = trace(model, names=CFG)
        try:
            with tr:
                model(x)
        finally:
            print(tr)  # what was recorded up to the failure

    return Tool(ways, str, look, fail)


def torchinfo() -> Tool:
    from torchinfo import summary

    def run(model: nn.Module, x: Tensor) -> Any:
        columns = ("input_size", "output_size", "num_params", "mult_adds")
        return summary(model, input_data=(x,), verbose=0, depth=9, col_names=columns, row_settings=("var_names",))

    def look(model: nn.Module, x: Tensor) -> Seen:
        found = run(model, x)
        leaves = [layer.class_name for layer in found.summary_list if layer.is_leaf_layer]
        return Seen(str(found), "", leaves, found.total_params, 2 * found.total_mult_adds, found.total_output_bytes)

    return Tool({"": run}, str, look, run)


def torchview() -> Tool:
    from torchview import draw_graph

    def run(model: nn.Module, x: Tensor) -> Any:
        return draw_graph(model, input_data=(x,), depth=9, expand_nested=True, device="cpu")

    def boxes(graph: Any) -> str:
        labels = re.findall(r"label=(?:<(.*?)>\s|(\w+) labeljust)", graph.visual_graph.source, flags=re.DOTALL)
        return "\n".join(" ".join(re.sub(r"<[^>]*>", " ", table or name).split()) for table, name in labels)

    def look(model: nn.Module, x: Tensor) -> Seen:
        graph = run(model, x)
        nodes = {node for edge in graph.edge_list for node in edge}
        return Seen(boxes(graph), operations=[node.name for node in nodes if type(node).__name__ != "TensorNode"])

    return Tool({"": run}, boxes, look, run)


def torchlens() -> Tool:
    import torchlens
    from torchlens.options import CaptureOptions

    def run(model: nn.Module, x: Tensor, **options: Any) -> Any:
        return torchlens.trace(model, x, capture=CaptureOptions(**options))

    def look(model: nn.Module, x: Tensor) -> Seen:
        log = run(model, x, save_code_context=True)
        data = [repr(operation) for operation in log.ops]
        frames = {frame for operation in log.ops for frame in operation.code_context or ()}
        data += [f"{Path(frame.file).name}:{frame.line_number} {frame.func_name}" for frame in frames]
        names = [operation.func_name for operation in log.ops]
        flops, saved = int(log.total_flops_forward), int(log.total_autograd_memory)
        return Seen(str(log.summary()), "\n".join(data), names, log.num_params, flops, saved)

    def fail(model: nn.Module, x: Tensor) -> None:
        torchlens.trace(model, x, echo=True)

    ways = {"default": run, "no values kept": lambda model, x: run(model, x, layers_to_save="none")}
    return Tool(ways, lambda log: str(log.summary()), look, fail)


def lovely_tensors() -> Tool:
    from lovely_tensors import lovely

    def run(model: nn.Module, x: Tensor, write: Callable[[str], Any] | None = None) -> list[str]:
        lines: list[str] = []
        write = write or lines.append

        def describe(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            write(f"{names[module]} {type(module).__name__} {lovely(output)}")

        names = {module: name for name, module in model.named_modules()}
        handles = [module.register_forward_hook(describe) for module in names]
        try:
            model(x)
        finally:
            for handle in handles:
                handle.remove()
        return lines

    def look(model: nn.Module, x: Tensor) -> Seen:
        leaves = [type(module).__name__ for module in model.modules() if not list(module.children())]
        return Seen("\n".join(run(model, x)), operations=leaves)

    return Tool({"": run}, "\n".join, look, lambda model, x: run(model, x, print))


def flop_counter_mode() -> Tool:
    from torch.utils.flop_counter import FlopCounterMode

    def run(model: nn.Module, x: Tensor) -> Any:
        with FlopCounterMode(display=False) as counter:
            model(x)
        return counter

    def text(counter: Any) -> str:
        counts = counter.get_flop_counts().items()
        return "\n".join(f"{module} {operation} {n:,}" for module, each in counts for operation, n in each.items())

    def look(model: nn.Module, x: Tensor) -> Seen:
        counter = run(model, x)
        names = [str(operation).split(".")[-1] for operation in counter.get_flop_counts()["Global"]]
        return Seen(text(counter), operations=names, flops=counter.get_total_flops())

    return Tool({"": run}, text, look, run)


TOOLS: dict[str, tuple[str, Callable[[], Tool]]] = {  # column -> the package it comes from, how to get it
    "`trace` here": ("", this_project),
    "torchinfo": ("torchinfo", torchinfo),
    "torchview": ("torchview", torchview),
    "torchlens": ("torchlens", torchlens),
    "lovely-tensors": ("lovely-tensors", lovely_tensors),
    "FlopCounterMode": ("torch", flop_counter_mode),
    "none": ("torch", plain_pytorch),
}


# ---------------------------------------------------------------- searching what they gave


def spoken(name: str) -> str:
    """One spelling for the many names of an operation: `__radd__` and `add`, `Linear` and `linear`, `sdpa`."""
    name = name.lower().strip("_").replace("_", "")
    also = {
        "truediv": "div", "rpow": "pow", "radd": "add", "rmul": "mul", "rsub": "sub", "+": "add", "matmul": "@",
        "bmm": "@", "mm": "linear", "sdpa": "scaleddotproductattention",
    }  # fmt: skip
    return also.get(name, name)


def matched(reported: list[str], true: list[str]) -> Counter:
    """The true operations that a tool has rows for, each row used once."""
    return Counter(map(spoken, reported)) & Counter(map(spoken, true))


def found(pattern: str, seen: Seen) -> str:
    return YES if re.search(pattern, seen.text) else HELD if re.search(pattern, seen.data) else NO


def worst(cells: list[str]) -> str:
    return max(cells, key=(YES, HELD, NO).index)


def line_of(function: Callable, code: str) -> int:
    """The line, in its file, at which `code` stands in a function."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if code in line)


def error_of(value: float | None, truth: float) -> str:
    """A number with how far it is from the true one."""
    return NO if value is None else f"{value:,}" + (f" ({value / truth - 1:+.1%})" if value != truth else "")


def sees_statistics(seen: Seen, std: float) -> str:
    """Whether the standard deviation of the block's output stands in what the tool gave."""
    for cell, text in ((YES, seen.text), (HELD, seen.data)):
        values = re.findall(r"(?:σ|sd|std)\s*=?\s*(\d+\.\d+)", text)
        if any(abs(float(value) / std - 1) < 0.01 for value in values):
            return cell
    return NO


def block_rows(tool: Tool) -> dict[str, str]:
    """What the tool shows of the block. Operations are counted in both layers, fused and written out."""
    x, fused, by_hand = activations(), fused_layer(), layer_by_hand()
    truths = [true_operations(layer, x) for layer in (fused, by_hand)]
    saved, num_params = bytes_saved(fused, x), sum(parameter.numel() for parameter in fused.parameters())
    seen, seen_by_hand = tool.look(fused, x), tool.look(by_hand, x)
    rows = [matched(each.operations, truth) for each, truth in zip((seen, seen_by_hand), truths, strict=True)]
    kinds = {spoken(name) for name in seen.operations + seen_by_hand.operations}
    named = {"sdpa": "sdpa", "softmax": "softmax", "view": "unflatten", "@": "@", "+": "+"}
    where = f", {HELD}" if found("softmax", seen_by_hand) == HELD else ""
    letters = found(r"[(\[]B[ ,]+T[ ,]+D", seen)
    unsure = len(re.findall(r"[A-Z]\|[A-Z]", seen.text))
    return {
        f"operations seen, of {sum(map(len, truths))}": f"{sum(row.total() for row in rows)}" + where,
        "among them": " ".join(label for label, name in named.items() if spoken(name) in kinds) or NO,
        "helper functions (`project`, `rotate`, `attend`)": worst(
            [found(rf"\b{name}\b", seen) for name in ("project", "rotate", "attend")]
        ),
        "source lines": found(rf":{line_of(attend, 'is_causal=True')}\b", seen),
        "dimensions in letters": letters + (f", {unsure} ambiguous" if letters == YES and unsure else ""),
        f"parameters, of {num_params:,}": error_of(seen.params, num_params),
        f"FLOPs, of {closed_form_flops():,}": error_of(seen.flops, closed_form_flops()),
        f"bytes kept for backward, of {saved:,}": error_of(seen.saved, saved),
        "statistics of values": sees_statistics(seen, fused(x).std().item()),
    }


# ---------------------------------------------------------------- when forward raises


def message_of(call: Callable[[], Any]) -> tuple[BaseException, str]:
    """The exception that a call raises, and what stands beside Python's traceback: messages, notes, printed text."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            call()
    except RuntimeError as error:
        chain, each = [], error
        while each is not None:
            chain += traceback.format_exception_only(each)
            each = each.__cause__
        return error, "".join(chain) + printed.getvalue()
    raise AssertionError("the forward pass was made to raise, and did not")


def shape_pattern(*sizes: int) -> str:
    return rf"[(\[]{', ?'.join(map(str, sizes))}[)\]]"


def failure_rows(tool: Tool) -> dict[str, str]:
    """What the tool adds when a mask for 8 tokens meets the logits of 16."""
    layer, x = layer_by_hand(mask_length=8), activations()
    original, _ = message_of(lambda: layer(x))
    error, text = message_of(lambda: tool.fail(layer, x))
    line = line_of(AttentionByHand.forward, "logits + mask")
    logits, mask, queries = shape_pattern(2, 8, 16, 16), shape_pattern(8, 8), shape_pattern(2, 16, 128)
    checks = {
        "exception as it was raised": type(error) is type(original) and str(error) == str(original),
        "failing line": re.search(rf"{Path(__file__).name}:{line}\b", text),
        "place in the model": re.search(r"\battn\b", text),
        "shapes of both operands": re.search(logits, text) and re.search(mask, text),
        "… with their names": re.search(rf"\blogits\b.*{logits}", text) and re.search(rf"\bmask\b.*{mask}", text),
        "shapes up to there": re.search(queries, text) or re.search(r"B,(T,H·K|[GHT],[GHT],K)\b", text),
        "a hint how to mend it": re.search(r"(?i)\b(hint|remedy|try)\b.*(mask|\b8\b)", text),
    }
    return {f"error: {row}": YES if ok else NO for row, ok in checks.items()}


# ---------------------------------------------------------------- time


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()  # what an earlier call left behind is not this one's cost
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def spread(ratios: list[float]) -> str:
    """Median [smallest, largest], to two figures."""
    middle, low, high = (
        f"{r:.0f}" if r >= 20 else f"{r:.1f}" for r in (statistics.median(ratios), min(ratios), max(ratios))
    )
    return f"{middle} [{low}, {high}]"


def time_rows(make: Callable[[], Tool], rounds: int) -> dict[str, str]:
    """Cost of tracing ten layers, and the length of what is printed."""
    model = GPT(CFG).eval()
    tokens = torch.randint(0, CFG.vocab_size, (B, T), generator=torch.Generator().manual_seed(0))
    model(tokens)
    loading, tool = seconds(make)
    first_way, *_ = tool.ways.values()
    first, text = seconds(lambda: tool.text(first_way(model, tokens)))
    tracing: dict[str, list[float]] = {way: [] for way in tool.ways}
    printing: dict[str, list[float]] = {way: [] for way in tool.ways}
    for each in range(-1, rounds):  # the first round warms up
        plain = statistics.median(seconds(lambda: model(tokens))[0] for _ in range(5))
        for way, run in tool.ways.items():
            traced, result = seconds(lambda run=run: run(model, tokens))
            printed, _ = seconds(lambda result=result: tool.text(result))
            if each >= 0:
                tracing[way].append(traced / plain)
                printing[way].append((traced + printed) / plain)
    return {
        "time ÷ plain forward pass": "<br>".join(f"{spread(tracing[way])} {way}".strip() for way in tool.ways),
        "… with its text": "<br>".join(f"{spread(printing[way])} {way}".strip() for way in tool.ways),
        "first use, with import and text": f"{loading + first:.1f} s",
        "lines of text": str(len(text.splitlines())),
    }


# ---------------------------------------------------------------- the table


def measure(column: str, rounds: int) -> dict[str, str]:
    """All rows of one tool."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")  # the tools' own remarks about the model
    package, make = TOOLS[column]
    version = {"version": importlib.metadata.version(package) if package else NO}
    times = time_rows(make, rounds)
    tool = make()
    return version | times | block_rows(tool) | failure_rows(tool)


def measure_apart(column: str, rounds: int) -> dict[str, str]:
    """The same in a process of its own; a started program, because torchlens refuses children of multiprocessing."""
    command = [sys.executable, __file__, "--rounds", str(rounds), "--only", column]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def is_installed(package: str) -> bool:
    return not package or importlib.util.find_spec(package.replace("-", "_")) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds per tool")
    parser.add_argument("--only", choices=list(TOOLS), help="one column, as JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments.rounds)))
        return
    columns = [name for name, (package, _) in TOOLS.items() if is_installed(package)]
    results = [measure_apart(column, arguments.rounds) for column in columns]
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for row in results[0]:
        print(f"| {row} | {' | '.join(result[row] for result in results)} |")
    print(f"\nPython {sys.version.split()[0]}, torch {torch.__version__}, {arguments.rounds} rounds, one thread")
    for name in sorted(TOOLS.keys() - columns):
        print(f"not installed: pip install {name}")


if __name__ == "__main__":
    main()
