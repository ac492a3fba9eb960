"""What a training will take: memory by part, disk, time and energy, told from its spec and the base's config.json. Pure.

A real training of ten steps corrects it: what that measured is `Measured`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backpropagate.judge.cards import Power, power_of
from backpropagate.judge.halving import largest_divisor, least_batch
from backpropagate.judge.memory import Memory, Setup, memory, trained_parameters
from backpropagate.judge.shape import Shape, shape
from backpropagate_protocol.spec import RunSpec

MIB = 1 << 20
_SMALL_CARD = 24 << 10  # MiB; below, moments are held in 8 bits: as the backend chooses
_PAIRS = ("orpo", "simpo", "dpo")
_EIGHT_BIT, _WIDE_STATE = 2, 8  # bytes of Adam's two moments for one parameter
_DRIVER = (350 * MIB, 700 * MIB)  # what a CUDA context and its libraries take beside the tensors
_SLACK = (1.0, 1.06)  # what the allocator holds, of what tensors need
_UNSURE = (0.85, 1.20)  # of a family whose layers are guessed at
_EFFICIENCY = (0.15, 0.45)  # of a card's matrix products, in a training
_MEASURED = (0.9, 1.15)  # a run's time by that of ten of its longest steps
_LOADING = 1.05  # a peak within this of what the load takes may be the load's own
_DRAW = (0.55, 1.0)  # of the power limit
_ROOM = 0.95  # of the free memory; the rest is for what others do meanwhile
MOST = 16  # samples in a micro-batch; more is no faster
_QUANTIZED = {"q4_k_m": 0.62, "q5_k_m": 0.73, "q8_0": 1.07}  # bytes of a parameter


@dataclass(frozen=True, slots=True)
class Range:
    low: float
    high: float

    def times(self, low: float, high: float) -> Range:
        return Range(self.low * low, self.high * high)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card: memory in MiB as the driver counts it; `used` by others. watts 0: not known."""

    name: str
    total: int
    used: int = 0
    watts: float = 0.0

    @property
    def free(self) -> int:
        return max(0, self.total - self.used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What ten real steps took: the peak of tensors in bytes with this micro-batch (0: the device does not say), and tokens per
    second. longest: tokens of their longest sample; of a pair, of both its rows."""

    micro_batch: int
    peak: int
    longest: int
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Rows:
    """What is known of the data before they are read: how many rows, and tokens in one of them."""

    count: int | None = None
    tokens: Range | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes in the output folder: checkpoints while the run lasts, its result, and what is exported."""

    checkpoints: int
    result: int
    export: int

    @property
    def total(self) -> int:
        return self.checkpoints + self.result + self.export


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """vram: bytes on the card, with what the driver takes; `movable` of them go to the host where there is no room. largest: the largest micro-batch that fits; 0: none does.

    fits: None without a card. seconds, watt_hours: None where the card, or the number of steps, is not known. exact: the family
    of the base is known. measured: corrected by real steps.
    """

    parameters: int
    trained: int
    micro_batch: int
    accumulation: int
    length: int
    setup: Setup
    memory: Memory
    peak: int
    vram: Range
    movable: int
    disk: Disk
    steps: int | None
    seconds: Range | None
    watt_hours: Range | None
    gpu: Gpu | None
    fits: bool | None
    largest: int | None
    exact: bool
    measured: bool


def estimate(
    spec: RunSpec,
    config: Mapping[str, object],
    gpu: Gpu | None = None,
    *,
    micro_batch: int | None = None,
    rows: Rows = Rows(),
    measured: Measured | None = None,
) -> Estimate | None:
    """None for a base whose config.json tells no shape. micro_batch: to be reckoned with; None: what would be begun with."""
    sizing = Sizing.of(spec, config, gpu, measured)
    if sizing is None:
        return None
    effective, least = spec.train.effective_batch, least_batch(spec.train.method)
    largest = sizing.largest(gpu.free) if gpu is not None else None
    if micro_batch is None:
        micro_batch = spec.train.batch_size or largest or (1 if gpu is not None else min(effective, 2))
    micro_batch = largest_divisor(effective, micro_batch, least)
    vram = sizing.vram(micro_batch)
    steps = _steps(spec, rows)
    seconds = _seconds(spec, sizing, steps, rows, gpu, measured)
    return Estimate(
        parameters=sizing.shape.parameters,
        trained=trained_parameters(sizing.shape, sizing.setup(1).adapter),
        micro_batch=micro_batch,
        accumulation=effective // micro_batch,
        length=spec.data.max_length,
        setup=sizing.setup(micro_batch),
        memory=memory(sizing.shape, sizing.setup(micro_batch)),
        peak=sizing.peak(micro_batch),
        vram=vram,
        disk=disk(spec, sizing),
        steps=steps,
        seconds=seconds,
        watt_hours=_watt_hours(seconds, gpu),
        gpu=gpu,
        movable=sizing.movable,
        fits=None if gpu is None else sizing.surely_fits(micro_batch, gpu.free),
        largest=largest,
        exact=sizing.shape.exact,
        measured=measured is not None,
    )


@dataclass(frozen=True, slots=True)
class Sizing:
    """Which micro-batch fits a training on a card."""

    spec: RunSpec
    shape: Shape
    card: int | None  # MiB in all
    measured: Measured | None = None

    @classmethod
    def of(
        cls, spec: RunSpec, config: Mapping[str, object], gpu: Gpu | None, measured: Measured | None = None
    ) -> Sizing | None:
        found = shape(config)
        return None if found is None else cls(spec, found, gpu.total if gpu is not None else None, measured)

    @property
    def on_card(self) -> bool:
        return self.spec.backend not in ("cpu", "toy", "mlx")

    @property
    def paged(self) -> bool:
        """The optimizer's state can be moved to the host's memory when the card has none left."""
        return self._optimizer().startswith("paged")

    def setup(self, micro_batch: int, length: int | None = None) -> Setup:
        """What `auto` stands for, as the backends choose it. length: tokens of the longest row; None: as many as are allowed."""
        spec, train = self.spec, self.spec.train
        full = train.mode == "full"
        wide = spec.model.dtype in ("fp32", "float32") or (spec.model.dtype == "auto" and not self.on_card)
        four_bit = self.on_card if spec.model.load_in_4bit is None else spec.model.load_in_4bit
        checkpointing = train.gradient_checkpointing
        return Setup(
            rows=micro_batch * (2 if train.method in _PAIRS else 1),
            length=spec.data.max_length if length is None else min(length, spec.data.max_length),
            adapter=None if full else spec.lora,
            bytes_per_weight=4 if wide else 2,
            four_bit=four_bit and not full and not train.fp8,
            checkpointing=(self.on_card or full) if checkpointing is None else checkpointing,
            state=_EIGHT_BIT if "8bit" in self._optimizer() else _WIDE_STATE,
            masked=micro_batch > 1 or train.method != "sft",
            fused=self.on_card,
            eager=train.attention == "eager",
            fp8=train.fp8,
        )

    def _optimizer(self) -> str:
        wish = self.spec.train.optim
        if wish != "auto" or not self.on_card:
            return wish if wish != "auto" else "adamw_torch"
        small = self.card is None or self.card < _SMALL_CARD
        return "paged_adamw_8bit" if small or self.spec.train.mode == "full" else "adamw_torch_fused"

    def peak(self, micro_batch: int) -> int:
        """Bytes of tensors at the worst moment, as torch counts them."""
        now = memory(self.shape, self.setup(micro_batch))
        if self.measured is None or not self.measured.peak:
            return now.peak
        # What stays is what it was; what grows with the batch is off by the same share in another batch, or with longer rows.
        rows = 2 if self.spec.train.method in _PAIRS else 1
        longest = -(-self.measured.longest // rows)
        then = memory(self.shape, self.setup(self.measured.micro_batch, longest))
        if self.measured.peak <= _LOADING * then.load:
            return now.peak  # it was the load's: of the steps it says nothing
        share = max(0.1, (self.measured.peak - then.held) / max(1, then.in_a_step - then.held))
        return max(now.load, round(now.held + (now.in_a_step - now.held) * share))

    def vram(self, micro_batch: int) -> Range:
        """Bytes on the card, with the driver's own."""
        peak = float(self.peak(micro_batch))
        tensors = Range(peak, peak).times(*_SLACK)
        if not self.shape.exact and self.measured is None:
            tensors = tensors.times(*_UNSURE)
        driver = _DRIVER if self.on_card else (0, 0)
        return Range(tensors.low + driver[0], tensors.high + driver[1])

    @property
    def movable(self) -> int:
        """Bytes that go to the host's memory by themselves when the card is full: a paged optimizer's state."""
        return memory(self.shape, self.setup(1)).optimizer if self.paged else 0

    def surely_fits(self, micro_batch: int, free: int) -> bool:
        """In `free` MiB, with some room for what others do meanwhile."""
        # While the weights are loaded there is nothing yet that could be moved.
        load = memory(self.shape, self.setup(micro_batch)).load
        return max(self.vram(micro_batch).high - self.movable, load) <= _ROOM * free * MIB

    def largest(self, free: int) -> int:
        """The largest micro-batch that divides the effective one and surely fits in `free` MiB; 0 if none does."""
        effective, least = self.spec.train.effective_batch, least_batch(self.spec.train.method)
        sizes = (size for size in range(min(effective, MOST), least - 1, -1) if effective % size == 0)
        return next((size for size in sizes if self.surely_fits(size, free)), 0)

    def impossible(self, total: int) -> Range | None:
        """What it would take, if even the smallest micro-batch with every saving cannot fit in the whole card's MiB."""
        if not self.shape.exact or not self.on_card:
            return None
        smallest = least_batch(self.spec.train.method)
        setup = self.setup(smallest)
        least = memory(self.shape, setup)
        # Rows may all be shorter than the longest allowed: only what is held whatever the data are is certain.
        certain = max(least.held - self.movable, least.load)
        return self.vram(smallest) if certain > total * MIB else None


def disk(spec: RunSpec, sizing: Sizing) -> Disk:
    """Bytes that stay in the output folder, the newest checkpoint counted twice while it is written."""
    setup = sizing.setup(1)
    trained = trained_parameters(sizing.shape, setup.adapter)
    weights = trained * (4 if setup.adapter is not None else setup.bytes_per_weight)
    kept = max(1, spec.safety.keep_checkpoints)
    if spec.train.steps is not None:
        kept = min(kept, spec.train.steps)
    result = weights if setup.adapter is None else 2 * weights
    return Disk((weights + setup.state * trained) * (kept + 1), result, _export(spec, sizing))


def _export(spec: RunSpec, sizing: Sizing) -> int:
    if spec.export is None or spec.export.format.startswith("lora"):
        return 0
    whole = 2 * sizing.shape.parameters
    quantized = _QUANTIZED.get(spec.export.quantization or "")
    return whole if quantized is None else whole + round(quantized * sizing.shape.parameters)


def _steps(spec: RunSpec, rows: Rows) -> int | None:
    if spec.train.steps is not None:
        return spec.train.steps
    if rows.count is None:
        return None
    return max(1, round((spec.train.epochs or 1.0) * -(-rows.count // spec.train.effective_batch)))


def _seconds(
    spec: RunSpec, sizing: Sizing, steps: int | None, rows: Rows, gpu: Gpu | None, measured: Measured | None
) -> Range | None:
    if steps is None:
        return None
    length = float(spec.data.max_length)
    each = rows.tokens or Range(min(64.0, length), length)
    samples = spec.train.effective_batch * (2 if spec.train.method in _PAIRS else 1)
    tokens = Range(steps * samples * min(each.low, length), steps * samples * min(each.high, length))
    if measured is not None and measured.tokens_per_second > 0:
        return tokens.times(_MEASURED[0] / measured.tokens_per_second, _MEASURED[1] / measured.tokens_per_second)
    power = _power(gpu)
    if power is None or not sizing.on_card:
        return None
    one = operations(sizing.shape, sizing.setup(1), spec.train.method) / (power.tflops * 1e12)
    return tokens.times(one / _EFFICIENCY[1], one / _EFFICIENCY[0])


def operations(shape: Shape, setup: Setup, method: str) -> float:
    """Floating-point operations for one token of training: forward, backward, and the forward made again.

    A frozen weight needs no gradient of its own. A method with a reference looks at each row once more.
    """
    weights = shape.linear_weights + shape.vocabulary * shape.hidden
    adapters = 0 if setup.adapter is None else trained_parameters(shape, setup.adapter)
    passes = (2 if setup.checkpointing else 1) + (1 if method in ("dpo", "kto") else 0)
    attention = 2 * len(shape.blocks) * shape.heads * shape.head_size * setup.length  # half of it is masked
    backward = 2 * attention + 2 * weights + (2 * weights if setup.adapter is None else 4 * adapters)
    return passes * (2 * weights + 2 * adapters + attention) + backward


def _power(gpu: Gpu | None) -> Power | None:
    return None if gpu is None else power_of(gpu.name)


def _watt_hours(seconds: Range | None, gpu: Gpu | None) -> Range | None:
    if seconds is None or gpu is None:
        return None
    power = power_of(gpu.name)
    watts = gpu.watts or (power.watts if power is not None else 0.0)
    return seconds.times(_DRAW[0] * watts / 3600, _DRAW[1] * watts / 3600) if watts else None
