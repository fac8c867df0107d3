"""Small real models for all rooms: GPT-2 with random weights and a tokenizer made on the spot."""

from __future__ import annotations

import os
import random
import signal
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["NNSIGHT_CONFIG"] = os.path.join(  # a user's own settings stay out of it
    tempfile.gettempdir(), f"nnsight-tests-{os.getpid()}", "config.json"
)
os.environ.pop("NDIF_API_KEY", None)
os.environ.pop("NDIF_HOST", None)

from pathlib import Path
from typing import Any

import pytest
import torch

TEXT = [
    "The Eiffel Tower is in the city of Paris. The Colosseum is in the city of Rome.",
    "The cat sat on the mat. The dog ran through the park. The quick brown fox jumps.",
    "The capital of France is Paris. The meaning of life is 42. Hello world! Test.",
    "_ _ _ _ _ _ Hello World What is 2+2?",
] * 4


LONGEST = (
    *("test_each_state.py", "test_examples.py", "test_fuzz.py", "test_faults.py", "test_rooms.py"),
    *("test_hostile.py", "test_random.py", "test_all_pythons.py", "test_backend.py"),
)
"""Files that take long, which are begun with: none of them is to be waited for in the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--order", metavar="SEED", help="put the test files in a random order")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    seed = config.getoption("--order")
    if seed is None:
        items.sort(key=lambda item: item.path.name not in LONGEST)
    else:
        files = {item.path: random.Random(f"{seed} {item.path}").random() for item in items}
        items.sort(key=lambda item: files[item.path])


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c() -> None:
    """A shell starts what runs behind it (`pytest &`) deaf to Ctrl-C, of which there are tests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def make_gpt2_folder(folder: Path, layers: int = 12, width: int = 48) -> Path:
    """A GPT-2 of random weights with a tokenizer of its own, as a folder to load from."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends).save_pretrained(folder)
    torch.manual_seed(7)
    config = GPT2Config(
        n_layer=layers,
        n_embd=width,
        n_head=4,
        vocab_size=400,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a GPT-2 of twelve layers and random weights lies."""
    return make_gpt2_folder(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def gpt2(gpt2_folder: Path):
    """A GPT-2 of twelve layers and random weights."""
    from nnsight import LanguageModel

    return LanguageModel(gpt2_folder, dispatch=True)


def states(block: Any) -> torch.Tensor:
    """The hidden states that a block of GPT-2 puts out; in transformers 4 first in a tuple."""
    output = block.output
    return output[0] if isinstance(output, tuple) else output


def hooks_on(module: torch.nn.Module) -> list[str]:
    """What a run left on a module: nothing, if all is well."""
    found = []
    for path, inner in module.named_modules():
        if inner._forward_hooks or inner._forward_pre_hooks:
            found.append(f"{path}: hook")
        if inner._forward_pre_hooks_with_kwargs or "forward" in vars(inner):
            found.append(f"{path}: forward")
    return found
