"""Families whose models read the padding of a batch whatever the mask says.

In a padded batch of such a model a shorter prompt has other numbers than alone. Nothing on our
side can mask what the model does not; a trace in which it happens warns. The table is measured:
`python -m tests.families` runs every family and docs/families.md has what it found.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakSet

import torch

from nnsight.capture.traceback import warn
from nnsight.modeling.format import Format
from nnsight.modeling.options import transformers_version
from nnsight.modeling.padding import Fields, leading_padding

FIVE = (5, 0)


@dataclass(frozen=True)
class Unmasked:
    """What a family does with padding."""

    why: str  # goes on after "`RwkvForCausalLM` "
    in_front: bool = True  # only padding in front is read: what comes after it reads none
    generating: bool = False  # only a decoder, and only in `generate`
    until: tuple[int, int] | None = None  # the transformers that does better


_STATE = "carries a state over the padding in front of a prompt"
_POSITIONS = "counts padding as positions when it generates"

UNMASKED: dict[str, Unmasked] = {
    "rwkv": Unmasked(_STATE),
    "recurrent_gemma": Unmasked(_STATE),
    "zamba2": Unmasked(_STATE, until=FIVE),
    "lfm2": Unmasked("convolves the padding in front of a prompt into it", until=FIVE),
    "openai-gpt": Unmasked(_POSITIONS, generating=True, until=FIVE),
    "ctrl": Unmasked(_POSITIONS, generating=True, until=FIVE),
    "xlnet": Unmasked("leaves the mask out when it generates", generating=True),
    "bart": Unmasked(_POSITIONS, generating=True),  # its decoder without the encoder
    "siglip": Unmasked(
        "takes a text for its last token, which is padding in the shorter ones", in_front=False
    ),
}
"""By `model_type` of the config."""

_told: WeakSet[torch.nn.Module] = WeakSet()


def warn_unmasked(fields: Fields, format: Format) -> None:
    """Warn, once for a model, if this batch is padded where the model reads padding."""
    found = UNMASKED.get(getattr(getattr(format.module, "config", None), "model_type", ""))
    mask = fields.get("attention_mask")
    if found is None or mask is None or mask.ndim != 2 or format.module in _told:
        return
    mended = found.until is not None and transformers_version() >= found.until
    if mended or (found.generating and not (format.generates and format.causal)):
        return
    read = leading_padding(mask) if found.in_front else (mask == 0).sum(-1)
    if not read.any():
        return
    _told.add(format.module)
    rows = ", ".join(map(str, read.nonzero().flatten().tolist()))
    warn(
        f"{type(format.module).__name__} {found.why}: here, row {rows} of the batch, which will "
        "have other numbers than alone. Give it prompts of equal length, or one at a time."
        + _RIGHT
        * (found.in_front and not format.generates)
    )


_RIGHT = (
    " Or pad behind them, where no token reads it: `LanguageModel(..., tokenizer_kwargs="
    "{'padding_side': 'right'})`; a shorter prompt then ends before `[-1]`."
)
