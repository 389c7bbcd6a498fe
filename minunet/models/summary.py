"""What a model is made of, layer by layer, and what training it will take, from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

from minunet.nn import Module, Placeholder, record_layers

BYTES = 4           # float32
MIB = 1 << 20


@dataclass(frozen=True)
class Row:
    """One layer: its dotted name, kind, output shape, and what it has, costs and makes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activation_bytes: int


@dataclass(frozen=True)
class Summary:
    """The table of a model's layers for one input shape. `str()` prints it.

    activation_bytes is the size of each layer's output in float32, also where it is the input itself (no padding, no
    dropout). training_bytes forecasts the peak of a training step with Adam.
    """

    rows: tuple[Row, ...]
    parameters: int
    training_bytes: int

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one forward pass."""
        return sum(row.multiply_adds for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """All outputs together, in float32."""
        return sum(row.activation_bytes for row in self.rows)

    def totals(self) -> str:
        """One line of sums."""
        return (f"{len(self.rows)} layers, {self.parameters:,} parameters, {self.multiply_adds:,} multiply-adds, "
                f"{self.activation_bytes / MIB:.2f} MiB of activations")

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = [f"{'layer':<{width}}  {'kind':<15} {'output (N, H, W, C)':<22} {'parameters':>12} "
                 f"{'multiply-adds':>16} {'activation MiB':>15}"]
        lines += [f"{row.name:<{width}}  {row.kind:<15} {str(row.shape):<22} {row.parameters:>12,} "
                  f"{row.multiply_adds:>16,} {row.activation_bytes / MIB:>15.2f}" for row in self.rows]
        lines += [self.totals(), f"forecast for training with Adam: {self.training_bytes / MIB:,.0f} MiB "
                                 "(parameters, gradients, Adam's two moments, what the backward needs, work space)"]
        return "\n".join(lines)


def summarize(model: Module, input_shape: tuple[int, ...]) -> Summary:
    """Walk the model with the input's shape (N, H, W, C)."""
    names = {id(module): name for name, module in model.named_modules()}
    with record_layers() as calls:
        model(Placeholder(input_shape))
    rows = []
    kept: dict[int, float] = {}             # bytes of each array that some layer keeps; an array kept twice counts once
    for call in calls:
        size = _bytes(call.output)
        own = sum(p.data.size for _, p in call.layer.named_parameters())
        rows.append(Row(names[id(call.layer)], type(call.layer).__name__, call.output.shape, own,
                        call.layer.multiply_adds(call.output.shape), size))
        held = call.inputs if call.layer.kept.inputs else ()
        held += (call.output,) if call.layer.kept.output else ()
        kept.update({id(array): _bytes(array) for array in held})
        if call.layer.kept.extra:
            kept[id(call)] = call.layer.kept.extra * size
    parameters = sum(p.data.size for p in model.parameters())
    largest = max(row.activation_bytes for row in rows)
    # parameters, gradients and two moments; what backward needs; the largest work space beyond what is freed by then
    training = 4 * BYTES * parameters + sum(kept.values()) + largest
    return Summary(tuple(rows), parameters, int(training))


def _bytes(array: Placeholder) -> int:
    size = BYTES
    for n in array.shape:
        size *= n
    return size
