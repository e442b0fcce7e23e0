"""Every setting of a model and of a training run: two flat, frozen dataclasses and a few presets.

A config is checked when it is made, so a typo or an impossible size fails here, in one line that names the
field, the rule and the remedy, and not minutes later inside a matrix product. This file imports no torch.

    cfg = ModelConfig(dim=64, num_layers=8, vocab_size=2048)
    wide = cfg.replace(dim=128)                # a changed copy; configs themselves never change
    tcfg = TrainConfig(model_name="mine", max_iters=500)
"""

import dataclasses
import re
from dataclasses import dataclass

import recipe as recipes

NORMS = ("RMSNorm", "LayerNorm", "CosineNorm", "DyT", "none")
NONLINEARITIES = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "tanh", "sigmoid")
POSITIONS = ("rope", "rope_interleaved", "learned", "sinusoidal", "alibi", "none")
ANNEALS = ("cosine", "linear", "constant", "wsd")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "fp32", "bf16")
KERNELS = ("auto", "plain", "compiled")


# The layers that `post_norm` chooses between, written out.
PRE_NORM = "Norm->Attn->+->Norm->MLP->+"
SANDWICH = "Norm->Attn->Norm->+->Norm->MLP->Norm->+"


class Derived(int):
    """A size worked out from other fields. Marked, so that `cfg.replace(dim=128)` works it out afresh."""


class Config:
    """What both configs share: making one from a dict (a JSON file, a command line) and changing a copy."""

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """A config from `{field: value}`. Raises ValueError for an unknown field, with the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"{cls.__name__} has no field {name!r}{_did_you_mean(name, known)}")
        return cls(**values)

    def replace(self, **changes) -> "Config":
        """A copy with some fields changed, checked again."""
        return type(self).from_dict({**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **changes})

    def to_dict(self) -> dict:
        """Plain `{field: value}`, ready for JSON. Derived sizes are None again, so that they stay derived."""
        return {name: None if isinstance(v, Derived) else v for name, v in dataclasses.asdict(self).items()}


def _did_you_mean(word: str, choices) -> str:
    close = recipes.nearest(str(word), map(str, choices))
    return f"; did you mean {close!r}?" if close else f"; choose from {', '.join(map(str, choices))}"


def _check_types(cfg: Config) -> None:
    """Each value must have its field's declared type; an int passes for a float, a bool never for an int."""
    for f in dataclasses.fields(cfg):
        value, kinds = getattr(cfg, f.name), f.type if isinstance(f.type, type) else f.type.__args__
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
            raise ValueError(f"{f.name}={value!r} must be of type {names}, not {type(value).__name__}")
        if isinstance(value, float) and value != value:
            raise ValueError(f"{f.name}=nan must be a number")


def _at_least(cfg: Config, low, *names: str) -> None:
    for name in names:
        if getattr(cfg, name) < low:
            raise ValueError(f"{name}={getattr(cfg, name)} must be at least {low}")


def _one_of(cfg: Config, name: str, choices) -> None:
    if getattr(cfg, name) not in choices:
        raise ValueError(f"{name}={getattr(cfg, name)!r} is unknown{_did_you_mean(getattr(cfg, name), choices)}")


@dataclass(frozen=True)
class ModelConfig(Config):
    """The architecture: everything needed to rebuild a model before its weights are loaded."""

    # size
    dim: int = 64  # D, width of the residual stream: parameters and time grow with its square
    num_layers: int = 8  # depth: more layers compose more steps, one after the other
    vocab_size: int = 2048  # V, must be the tokenizer's; V x dim parameters, much of a small model
    max_seq_len: int = 512  # longest context in tokens; attention's time grows with its square
    # blocks: names under which classes are registered with @layer, your own too
    attn_block: str = "MQA"  # what mixes positions: `Attn` in a recipe
    mlp_block: str = "MLP"  # what works on each position: `MLP` in a recipe
    recipe: str = ""  # a layer as a line of text, such as 'Norm->[Attn|MLP]->+' (recipe.py); "": ResidualLayer
    # attention
    num_q_heads: int = 4  # H, attention patterns per layer
    num_kv_heads: int = 2  # G, shared by groups of H/G query heads: fewer make the decode cache smaller
    head_dim: int | None = None  # K, width of a head; None: dim / num_q_heads. H x K need not equal dim
    qk_norm: bool = False  # normalise queries and keys per head: steadier training at high learning rates
    # MLP
    mlp_hidden_mult: float = 2.0  # F = this x dim
    mlp_hidden: int | None = None  # F exactly, where a multiple won't do; wins over the multiple
    mlp_gated: bool = True  # a second input projection multiplies the first (GLU): better, half as many more parameters
    mlp_nonlinearity: str = "silu"  # one of NONLINEARITIES; gated silu is SwiGLU, gated gelu is GeGLU
    mlp_bias: bool = False  # biases rarely help at this size
    # norms
    norm_type: str = "RMSNorm"  # one of NORMS
    norm_affine: bool = True  # a learned scale per channel
    norm_bias: bool = False  # a learned shift per channel; needs norm_affine
    norm_eps: float = 1e-5  # keeps the division finite for an all-zero vector
    post_norm: bool = False  # a second norm on each block's output, before it is added (sandwich norm)
    # ends
    positions: str = "rope"  # one of POSITIONS: how a token knows where it stands
    rope_dim: int | None = None  # channels of each head that RoPE turns, the rest knowing no position; None: all
    rope_theta: float = 10_000.0  # RoPE's slowest wavelength: larger reaches further, at less resolution
    rope_factor: float = 1.0  # RoPE turns this much slower: a trained model reaches further, after some more training
    rope_original_len: int | None = None  # the context before: its fast channels keep their speed (Llama 3.1's rule)
    scale_first_residual: bool = False  # multiply embeddings by sqrt(dim), as the first Transformer and Gemma do
    tied_head: bool = True  # read logits off with the embedding matrix: saves V x dim parameters
    logit_cap: float | None = None  # squash logits into (-cap, cap) by tanh, as Gemma 2 does with 30; None: leave them
    embed_dim: int | None = None  # width of the embeddings, which a second matrix brings to dim: saves much of V x dim
    dropout_rate: float = 0.0  # share of activations dropped in training: helps when text is seen many times

    def __post_init__(self):
        if self.recipe:  # kept in its one canonical form, which names the architecture
            object.__setattr__(self, "recipe", recipes.format(recipes.parse(self.recipe)))
        _check_types(self)
        if self.recipe and self.post_norm:
            raise ValueError(
                f"post_norm=True stands for the recipe {SANDWICH!r}, but recipe={self.recipe!r} is given too: "
                "write the second norms into the recipe, or leave it out"
            )
        _at_least(self, 1, "dim", "num_layers", "vocab_size", "max_seq_len", "num_q_heads", "num_kv_heads")
        for name, choices in (("norm_type", NORMS), ("mlp_nonlinearity", NONLINEARITIES), ("positions", POSITIONS)):
            _one_of(self, name, choices)
        self._check_heads()
        if self.mlp_hidden is None or isinstance(self.mlp_hidden, Derived):
            object.__setattr__(self, "mlp_hidden", Derived(self.mlp_hidden_mult * self.dim))
        if self.mlp_hidden < 1:
            raise ValueError(f"mlp_hidden={self.mlp_hidden} must be at least 1: raise mlp_hidden_mult, or set it")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate={self.dropout_rate} must be in [0, 1): it is the share that is dropped")
        if self.embed_dim is not None and not 1 <= self.embed_dim < self.dim:
            raise ValueError(
                f"embed_dim={self.embed_dim} must be from 1 to dim - 1 = {self.dim - 1}: a wider embedding would cost "
                "parameters and add nothing; None: embeddings of width dim, and no second matrix"
            )
        if self.norm_eps <= 0 or self.rope_theta <= 0:
            raise ValueError(f"norm_eps={self.norm_eps} and rope_theta={self.rope_theta} must be positive")
        if self.logit_cap is not None and not 0 < self.logit_cap < float("inf"):
            raise ValueError(f"logit_cap={self.logit_cap} must be positive and finite, or None: logits as they are")
        self._check_rope_scaling()
        if self.norm_bias and not self.norm_affine:
            raise ValueError("norm_bias=True needs norm_affine=True: a shift without a scale is not offered")
        if self.positions == "sinusoidal" and self.dim % 2:
            raise ValueError(f"dim={self.dim} must be even for sinusoidal positions: they come as sine-cosine pairs")

    @property
    def architecture(self) -> str:
        """The recipe of a layer in its canonical form, whether it was given or chosen by `post_norm`."""
        return self.recipe or (SANDWICH if self.post_norm else PRE_NORM)

    def _check_rope_scaling(self):
        if not 1 <= self.rope_factor < float("inf"):
            raise ValueError(f"rope_factor={self.rope_factor} must be a finite number from 1 up; 1: RoPE as it is")
        if self.rope_original_len is not None and (self.rope_original_len < 1 or self.rope_factor == 1):
            raise ValueError(
                f"rope_original_len={self.rope_original_len} must be at least 1, with a rope_factor above 1 (it is "
                f"{self.rope_factor}): it says which channels the factor slows down; None: all"
            )

    def _check_heads(self):
        if self.num_q_heads % self.num_kv_heads:
            fits = [g for g in range(1, self.num_q_heads + 1) if self.num_q_heads % g == 0]
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} must divide num_q_heads={self.num_q_heads}, since each key/value "
                f"head serves a whole group of query heads; choose from {fits}"
            )
        if self.head_dim is None or isinstance(self.head_dim, Derived):
            if self.dim % self.num_q_heads:
                raise ValueError(
                    f"dim={self.dim} is not a multiple of num_q_heads={self.num_q_heads}: "
                    "change one of them, or set head_dim yourself"
                )
            object.__setattr__(self, "head_dim", Derived(self.dim // self.num_q_heads))
        _at_least(self, 1, "head_dim")
        if not self.positions.startswith("rope"):
            return
        if self.rope_dim is None and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for RoPE, which rotates pairs of channels")
        if self.rope_dim is not None and (self.rope_dim % 2 or not 2 <= self.rope_dim <= self.head_dim):
            raise ValueError(f"rope_dim={self.rope_dim} must be even, from 2 to head_dim={self.head_dim}, or None: all")


@dataclass(frozen=True)
class TrainConfig(Config):
    """One training run: text, length, optimizer, schedule, records."""

    # what is trained on what
    model_name: str = "my_model"  # the folder under trained_models/; an unfinished one of this name is resumed
    dataset: str = "auto"  # "auto", "tinystories", "storyworld", or a path to .txt, .jsonl, .parquet or a folder
    valid_dataset: str = ""  # text to validate on; "": the dataset's own split, else 2 % of it held out
    dataset_limit: int = 50_000_000  # bytes streamed from a hub at most, so that nobody downloads gigabytes unasked
    tokenizer: str = "auto"  # "auto": the shipped one of vocab_size; else "byte", "characters", a path, a hub name
    init_from: str = ""  # a saved model whose weights to start from; "": random weights
    # how long
    batch_size: int = 4  # rows per forward pass, over all processes of torchrun; each is max_seq_len tokens
    grad_accum_steps: int = 1  # forward passes per step: a larger batch in the same memory
    max_iters: int = 4000  # optimizer steps
    # optimizer
    optimizer: str = "muon"  # "adamw", or "muon": Muon for the hidden matrices and AdamW for the rest
    lr_max: float = 6e-3  # AdamW's peak learning rate
    muon_lr: float = 0.02  # Muon's peak learning rate; it follows the same schedule
    beta1: float = 0.9  # AdamW's memory of the gradient
    beta2: float = 0.95  # AdamW's memory of its square; 0.95 forgets an outlier sooner than 0.999
    adam_eps: float = 1e-8  # AdamW's guard against division by zero
    weight_decay: float = 0.0  # pull of matrices towards zero per unit of learning rate; vectors never decay
    grad_clip: float = 1.0  # longest allowed gradient (Euclidean norm over all parameters); 0: no limit
    # schedule: warm-up, then annealing (with restarts), then a flat end; see train.lr_at
    warmup_iters: int | None = None  # steps from 0 up to the peak; None: 2 % of max_iters
    anneal_type: str = "linear"  # "cosine", "linear", "constant", or "wsd" (stable, then a linear decay)
    lr_min: float = 0.0  # the learning rate that annealing ends at; Muon's is scaled alike
    num_restarts: int = 0  # warm restarts: the annealing starts again from the peak this many times
    T_mult: float = 1.0  # each cycle after a restart is this many times as long as the one before
    final_flat_iters: int = 0  # steps at lr_min after the annealing
    wsd_decay_fraction: float = 0.2  # "wsd" only: share of the steps after warm-up spent decaying
    # records
    eval_interval: int = 250  # steps between evaluations, which write a row of log_data.csv
    eval_documents: int = 100  # validation documents scored each time: always the same ones
    checkpoint_interval: int = 500  # steps between checkpoints, from which a killed run resumes exactly
    sample_prompt: str = "Once upon a time"  # continued at evaluations, to watch the model learn; "": no samples
    # machine
    precision: str = "auto"  # "fp32", "bf16", or "auto": bf16 where the processor has it, if trial steps are faster
    kernel: str = "auto"  # attention on a CPU: "plain" PyTorch, "compiled" C++, or "auto": the faster in trial steps
    compile: bool | None = None  # torch.compile: faster steps after a slow first one; None: on a GPU only
    device: str = "auto"  # "cpu", "cuda", "mps", or "auto": the fastest that is there
    num_threads: int = 0  # CPU threads of a process; 0: all cores (torchrun: 1). Exact resuming needs the same number
    seed: int = 1337  # weights, batch order and dropout all follow from it

    def __post_init__(self):
        _check_types(self)
        check_name(self.model_name, "model_name")
        if self.warmup_iters is None or isinstance(self.warmup_iters, Derived):
            object.__setattr__(self, "warmup_iters", Derived(self.max_iters // 50))
        for name, choices in (("optimizer", OPTIMIZERS), ("anneal_type", ANNEALS)):
            _one_of(self, name, choices)
        for name, choices in (("precision", PRECISIONS), ("kernel", KERNELS)):
            _one_of(self, name, choices)
        _at_least(self, 1, "batch_size", "grad_accum_steps", "max_iters", "eval_interval", "eval_documents")
        _at_least(self, 1, "checkpoint_interval", "dataset_limit", "T_mult")
        _at_least(self, 0, "warmup_iters", "final_flat_iters", "num_restarts", "num_threads", "seed")
        _at_least(self, 0, "weight_decay", "grad_clip", "lr_min")
        for name in ("lr_max", "muon_lr", "adam_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.lr_min > self.lr_max:
            raise ValueError(f"lr_min={self.lr_min} must not exceed lr_max={self.lr_max}")
        if not 0 < self.wsd_decay_fraction <= 1:
            raise ValueError(f"wsd_decay_fraction={self.wsd_decay_fraction} must be in (0, 1]")
        if self.warmup_iters + self.final_flat_iters > self.max_iters:
            raise ValueError(
                f"warmup_iters={self.warmup_iters} + final_flat_iters={self.final_flat_iters} leave no step of "
                f"max_iters={self.max_iters} to anneal in: lower one of the two, or train for longer"
            )
        if self.num_restarts and self.anneal_type not in ("cosine", "linear"):
            raise ValueError(f"num_restarts={self.num_restarts} needs anneal_type 'cosine' or 'linear'")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ValueError(f"device={self.device!r} is unknown; choose 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'")


WINDOWS_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


def check_name(name: str, field: str = "name") -> str:
    """Returns `name` if it can be a folder's name on every system. Raises ValueError if not."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name) or name.endswith("."):
        raise ValueError(
            f"{field}={name!r} must be 1 to 100 letters, digits, '_', '-' or '.', "
            "starting with a letter, digit or '_' and not ending in '.'"
        )
    if name.split(".")[0].lower() in WINDOWS_RESERVED:
        raise ValueError(f"{field}={name!r} is reserved on Windows; choose another")
    return name


# Three ways to spend half a million parameters, and Llama-3-style shapes for larger ones. All use QK-norm, which lets
# Muon run at the learning rates of TrainConfig.
_HALF_MILLION = dict(dim=64, vocab_size=2048, max_seq_len=512, head_dim=16, qk_norm=True)
# What learned fastest in benchmarks/ablations.py: 4,096 pieces in a factorised embedding that is the head too, times
# sqrt(dim); a wide stream through few layers of few, wide heads; the first layer's values brought back in every layer;
# normalised queries and keys; ReLU² in place of a gate.
_FAST = dict(
    vocab_size=4096, max_seq_len=512, head_dim=32, qk_norm=True, scale_first_residual=True,
    attn_block="ValueResidualAttn", mlp_gated=False, mlp_nonlinearity="relu2",
)  # fmt: skip
# The Llama-3-style MLP is 8/3 dim wide, rounded up to a multiple of 32, which processors like; its head is not tied.
_LLAMA3_STYLE = dict(vocab_size=4096, max_seq_len=256, rope_theta=500_000.0, qk_norm=True, tied_head=False)

PRESETS = {
    "debug": ModelConfig(dim=32, num_layers=2, vocab_size=512, max_seq_len=64, num_q_heads=4, num_kv_heads=2),
    "0.5m_short_and_thick": ModelConfig(
        **_HALF_MILLION, num_layers=4, mlp_hidden_mult=4.0, num_q_heads=16, num_kv_heads=4
    ),
    "0.5m_5foot11_and_skinnyfat": ModelConfig(
        **_HALF_MILLION, num_layers=8, mlp_hidden_mult=2.0, num_q_heads=8, num_kv_heads=2
    ),
    "0.5m_tall_and_skinny": ModelConfig(
        **_HALF_MILLION, num_layers=10, mlp_hidden_mult=1.0, num_q_heads=10, num_kv_heads=2
    ),
    "0.5m": ModelConfig(**_FAST, dim=96, embed_dim=48, num_layers=4, num_q_heads=3, num_kv_heads=1, mlp_hidden=252),
    "2m": ModelConfig(
        **_FAST, dim=192, embed_dim=96, num_layers=4, num_q_heads=6, num_kv_heads=2, mlp_hidden=768, dropout_rate=0.1
    ),
    "2m_llama3": ModelConfig(**_LLAMA3_STYLE, dim=128, num_layers=4, num_q_heads=4, num_kv_heads=4, mlp_hidden=352),
    # 256 is not a multiple of 6 heads, so the head's width is set here: 44, since 6 x 44 = 264 is the nearest even fit.
    "7m": ModelConfig(
        **_LLAMA3_STYLE, dim=256, num_layers=6, num_q_heads=6, num_kv_heads=6, head_dim=44, mlp_hidden=704
    ),
    "30m": ModelConfig(**_LLAMA3_STYLE, dim=512, num_layers=8, num_q_heads=8, num_kv_heads=8, mlp_hidden=1376),
}

# What a preset's training differs in from TrainConfig's defaults: TrainConfig(**TRAINING.get("0.5m", {})). Narrow
# embeddings that serve as the head too learn faster at rates higher than those of the trio.
TRAINING = {"0.5m": dict(muon_lr=0.03, lr_max=0.02), "2m": dict(muon_lr=0.03, lr_max=0.02)}

# Layers as text: what they are called, and where they come from. `PRESETS["debug_griffin"]` is the smallest of each.
RECIPES = {
    "llama": PRE_NORM,  # Touvron et al. 2023, arXiv 2302.13971
    "post_norm": "Attn->+->Norm->=->MLP->+->Norm",  # Vaswani et al. 2017, arXiv 1706.03762
    "sandwich": SANDWICH,  # Ding et al. 2021, arXiv 2105.13290; Gemma 2, Grok
    "parallel": "Norm->[Attn|MLP]->+",  # GPT-J, Wang & Komatsuzaki 2021
    "arctic": "Norm->Attn->+->Norm->MLP->+||Norm->MoE->+",  # Snowflake 2024: experts beside the whole layer
    "griffin": "{Norm->RGLRU->+->Norm->MLP->+}*2->Norm->Attn(window=128)->+->Norm->MLP->+",  # arXiv 2402.19427
    "mamba": "Norm->Mamba->+",  # Gu & Dao 2023, arXiv 2312.00752
    "hybrid": "Norm->Mamba->+->Norm->Attn->+->Norm->MLP->+",  # as in Jamba, arXiv 2403.19887
    "local_global": "Norm->Attn(window=cyc(16,none))->+->Norm->MLP->+",  # Gemma 2, arXiv 2408.00118
    "shared_ffn": "Norm->Attn->+->Norm->MLP#ffn->+",  # one MLP for all layers; as ALBERT shares, arXiv 1909.11942
    "value_residual": "Norm->ValueResidualAttn->+->Norm->MLP->+",  # Zhou et al. 2024, arXiv 2410.17897
    "cross_attention": "Norm->Attn->+->Norm->CrossAttn->+->Norm->MLP->+",  # to ctx.memory; arXiv 1706.03762
    "twice": "{Norm->Attn->+->Norm->MLP->+}^2",  # each layer run twice; Universal Transformer, arXiv 1807.03819
}
PRESETS |= {f"debug_{name}": PRESETS["debug"].replace(recipe=text) for name, text in RECIPES.items()}
