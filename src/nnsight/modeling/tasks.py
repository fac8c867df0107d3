"""What models are for, in the words of transformers: `"text-generation"` and the like."""

from __future__ import annotations

from typing import Any

from torch.nn import Module

TASKS = {
    "audio-classification": "AutoModelForAudioClassification",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
    "depth-estimation": "AutoModelForDepthEstimation",
    "feature-extraction": "AutoModel",
    "fill-mask": "AutoModelForMaskedLM",
    "image-classification": "AutoModelForImageClassification",
    "image-feature-extraction": "AutoModel",
    "image-segmentation": "AutoModelForImageSegmentation",
    "image-text-to-text": "AutoModelForImageTextToText",
    "mask-generation": "AutoModelForMaskGeneration",
    "object-detection": "AutoModelForObjectDetection",
    "question-answering": "AutoModelForQuestionAnswering",
    "sentiment-analysis": "AutoModelForSequenceClassification",
    "summarization": "AutoModelForSeq2SeqLM",
    "text-classification": "AutoModelForSequenceClassification",
    "text-generation": "AutoModelForCausalLM",
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "token-classification": "AutoModelForTokenClassification",
    "translation": "AutoModelForSeq2SeqLM",
    "video-classification": "AutoModelForVideoClassification",
    "visual-question-answering": "AutoModelForVisualQuestionAnswering",
    "zero-shot-image-classification": "AutoModelForZeroShotImageClassification",
}
"""The class of transformers that builds a model for each task."""

_FIRST = ("image-text-to-text", "text-generation", "text2text-generation", "text-classification")
# of the tasks that one class serves, the one to name; else the first in the table


def task_of(module: Module, usual: str | None = None) -> str | None:
    """The task that a module of transformers is built for; None for one of no known class.

    Args:
        usual: the task that is meant where its class serves several, or no task that is known.
    """
    kind, family = type(module).__name__, getattr(getattr(module, "config", None), "model_type", "")
    first = [usual, *_FIRST] if usual else list(_FIRST)
    known = [task for task in [*first, *TASKS] if kind in _classes(TASKS.get(task, ""), family)]
    return known[0] if known else usual


def _classes(automodel: str, family: str) -> tuple[str, ...]:
    """The names of the classes that an `AutoModel...` builds for a family of models."""
    import transformers

    mapping: Any = getattr(getattr(transformers, automodel, None), "_model_mapping", None)
    found = getattr(mapping, "_model_mapping", {}).get(family, ())  # names, without importing them
    return (found,) if isinstance(found, str) else tuple(found)
