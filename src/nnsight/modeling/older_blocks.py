"""Blocks of transformers that returned tuples in 4.x and return a bare tensor now.

Scripts of that time write `layer.output[0]` for the hidden state, which now is row 0 of the batch.
Blocks that have always returned a tensor (those of Mamba), and those that came later than that,
are not among them.
"""

from __future__ import annotations

import ast
import inspect
import textwrap

from torch.nn import Module

_RETURNED_TUPLES = frozenset(
    """
ASTLayer AlignTextLayer AltCLIPEncoderLayer AltRobertaLayer AriaTextDecoderLayer
AutoformerEncoderLayer BartDecoderLayer BartEncoderLayer BeitLayer BertGenerationLayer BertLayer
BigBirdLayer BigBirdPegasusDecoderLayer BigBirdPegasusEncoderLayer BioGptDecoderLayer
BitNetDecoderLayer BlenderbotDecoderLayer BlenderbotEncoderLayer BlenderbotSmallDecoderLayer
BlenderbotSmallEncoderLayer Blip2EncoderLayer Blip2QFormerLayer BlipEncoderLayer BlipTextLayer
BridgeTowerTextLayer BrosLayer CLIPEncoderLayer CLIPSegDecoderLayer CLIPSegEncoderLayer
CamembertLayer ChineseCLIPTextLayer ChineseCLIPVisionLayer ClapTextLayer Cohere2DecoderLayer
CohereDecoderLayer ConditionalDetrDecoderLayer ConditionalDetrEncoderLayer ConvBertLayer
CsmDecoderLayer DPTViTLayer Data2VecAudioEncoderLayer Data2VecTextLayer DbrxBlock
DecisionTransformerGPT2Block DeepseekV3DecoderLayer DeformableDetrDecoderLayer
DeformableDetrEncoderLayer DeiTLayer DetrDecoderLayer DetrEncoderLayer DiffLlamaDecoderLayer
Dinov2Layer Dinov2WithRegistersLayer ElectraLayer Emu3DecoderLayer ErnieLayer EsmLayer GPT2Block
GPTBigCodeBlock GPTNeoXLayer Gemma2DecoderLayer Gemma3DecoderLayer GemmaDecoderLayer GitLayer
GitVisionEncoderLayer Glm4DecoderLayer GlmDecoderLayer GotOcr2VisionLayer GraniteDecoderLayer
GraniteMoeDecoderLayer GraniteMoeHybridDecoderLayer GraniteMoeSharedDecoderLayer
GroupViTEncoderLayer HeliumDecoderLayer HubertEncoderLayer HubertEncoderLayerStableLayerNorm
IJepaLayer Idefics2EncoderLayer Idefics3EncoderLayer IdeficsDecoderLayer
IdeficsGatedCrossAttentionLayer InformerDecoderLayer InformerEncoderLayer
InstructBlipEncoderLayer InstructBlipQFormerLayer InstructBlipVideoEncoderLayer
InstructBlipVideoQFormerLayer InternVLVisionLayer JambaAttentionDecoderLayer
JambaMambaDecoderLayer JanusVisionEncoderLayer Kosmos2TextBlock Kosmos2VisionEncoderLayer
LayoutLMLayer LayoutLMv2Layer LayoutLMv3Layer Llama4TextDecoderLayer LlamaDecoderLayer
M2M100DecoderLayer M2M100EncoderLayer MBartDecoderLayer MBartEncoderLayer MLCDEncoderLayer
MarianDecoderLayer MarianEncoderLayer MarkupLMLayer MimiTransformerLayer MistralDecoderLayer
MixtralDecoderLayer MllamaCrossAttentionDecoderLayer MllamaSelfAttentionDecoderLayer
MobileBertLayer ModernBertEncoderLayer MoonshineDecoderLayer MoonshineEncoderLayer
MoshiDecoderLayer MusicgenDecoderLayer NemotronDecoderLayer NllbMoeDecoderLayer
NllbMoeEncoderLayer OPTDecoderLayer Olmo2DecoderLayer OlmoDecoderLayer OlmoeDecoderLayer
OwlViTEncoderLayer Owlv2EncoderLayer PLBartDecoderLayer PLBartEncoderLayer PegasusDecoderLayer
PegasusEncoderLayer PegasusXDecoderLayer PersimmonDecoderLayer Phi3DecoderLayer
Phi4MultimodalDecoderLayer Phi4MultimodalVisionEncoderLayer PhiDecoderLayer PhimoeDecoderLayer
PixtralAttentionLayer Qwen2AudioEncoderLayer Qwen2DecoderLayer Qwen2MoeDecoderLayer
Qwen2VLDecoderLayer Qwen2_5OmniDecoderLayer Qwen2_5_VLDecoderLayer Qwen3DecoderLayer
Qwen3MoeDecoderLayer RoCBertLayer RobertaLayer RobertaPreLayerNormLayer SEWEncoderLayer
SamHQVisionLayer SamVisionLayer SeamlessM4TConformerEncoderLayer SeamlessM4TDecoderLayer
SeamlessM4TEncoderLayer SeamlessM4Tv2ConformerEncoderLayer SeamlessM4Tv2DecoderLayer
SeamlessM4Tv2EncoderLayer SeamlessM4Tv2TextToUnitDecoderLayer SegformerLayer Siglip2EncoderLayer
SiglipEncoderLayer SmolVLMEncoderLayer Speech2TextDecoderLayer Speech2TextEncoderLayer
SplinterLayer StableLmDecoderLayer Starcoder2DecoderLayer TimeSeriesTransformerDecoderLayer
TimeSeriesTransformerEncoderLayer TransformerBlock UMT5Block UniSpeechEncoderLayer
UniSpeechEncoderLayerStableLayerNorm UniSpeechSatEncoderLayer
UniSpeechSatEncoderLayerStableLayerNorm ViTLayer ViTMAELayer ViTMSNLayer VideoMAELayer
VitPoseBackboneLayer VivitLayer Wav2Vec2BertEncoderLayer Wav2Vec2ConformerEncoderLayer
Wav2Vec2EncoderLayer Wav2Vec2EncoderLayerStableLayerNorm WhisperDecoderLayer WhisperEncoderLayer
XCLIPEncoderLayer XCLIPVisionEncoderLayer XGLMDecoderLayer XLMRobertaLayer XLMRobertaXLLayer
XmodLayer YolosLayer Zamba2MambaDecoderLayer ZambaMambaDecoderLayer
""".split()
)
"""Classes of transformers 4.52 that returned a tuple, whatever their config, and no longer do."""

_known: dict[type, bool] = {}


def was_tuple(module: Module) -> bool:
    """Whether `module` returns a bare tensor, and returned a tuple in transformers 4.x."""
    kind = type(module)
    if kind not in _known:
        _known[kind] = _is_listed(kind) and not _returns_tuple(kind)
    return _known[kind]


def _is_listed(kind: type) -> bool:
    return any(
        base.__name__ in _RETURNED_TUPLES and base.__module__.startswith("transformers.")
        for base in kind.__mro__
    )


def _returns_tuple(kind: type) -> bool:
    """Whether the forward of a class, as it is installed, returns a tuple: read off its source.

    Its annotation cannot be relied on, and before a block that is skipped there is no value to
    look at. A returned name counts if a tuple is bound or added to it anywhere.
    """
    try:
        source = textwrap.dedent(inspect.getsource(kind.forward))  # type: ignore[attr-defined]
        nodes = list(ast.walk(ast.parse(source)))
    except (OSError, SyntaxError, TypeError):
        return False
    returned = [n.value for n in nodes if isinstance(n, ast.Return) and n.value is not None]
    names = {value.id for value in returned if isinstance(value, ast.Name)}
    for node in nodes:
        if isinstance(node, ast.Assign):
            targets = {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            targets = {node.target.id}
        else:
            continue
        if targets & names:
            returned.append(node.value)
    return any(map(_makes_tuple, returned))


def _makes_tuple(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _makes_tuple(node.left) or _makes_tuple(node.right)
    if isinstance(node, ast.IfExp):
        return _makes_tuple(node.body) or _makes_tuple(node.orelse)
    return isinstance(node, ast.Tuple)
