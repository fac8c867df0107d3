"""Where the families keep their parts that are encoders, or have one: of text, sound and images."""

from __future__ import annotations

from dataclasses import replace

from nnsight.modeling.family import BETWEEN, BLOCKS, POST, PRE, Family

BERT = Family(
    layers="encoder.layer",
    norm="",
    attn="attention",
    cross="crossattention",
    q="self.query",
    k="self.key",
    v="self.value",
    out="output.dense",
    kernel="self",
    mlp="",
    down="output.dense",
    router="",
    mid="crossattention.output|attention.output",
    order=POST,
    attn_norm="attention.output.LayerNorm",
    cross_norm="crossattention.output.LayerNorm",
    mlp_norm="output.LayerNorm",
)
DISTILBERT = replace(
    BERT,
    layers="transformer.layer",
    q="q_lin",
    k="k_lin",
    v="v_lin",
    out="out_lin",
    cross="",
    kernel="",
    mlp="ffn",
    down="lin2",
    mid="sa_layer_norm.output",
    attn_norm="sa_layer_norm",
    mlp_norm="output_layer_norm",
)
MODERNBERT = Family(
    norm="final_norm",
    attn="attn",
    q="Wqkv",
    k="Wqkv",
    v="Wqkv",
    joined=BLOCKS,
    out="Wo",
    down="Wo",
    mid="mlp_norm.input",
    router="",
)
T5 = Family(
    layers="encoder.block",
    norm="encoder.final_layer_norm",
    stack="encoder",
    attn="layer.0.SelfAttention",
    q="q",
    k="k",
    v="v",
    out="o",
    mlp="layer.1.DenseReluDense",
    down="wo",
    router="",
    mid="layer.1.input",
)
T5_DECODER = replace(
    T5,
    layers="decoder.block",
    norm="decoder.final_layer_norm",
    stack="decoder",
    cross="layer.1.EncDecAttention",
    mlp="layer.2.DenseReluDense",
    mid="layer.2.input",
)
SWITCH, SWITCH_DECODER = (
    replace(family, mlp=f"{mlp}.mlp", router=f"{mlp}.mlp.router")
    for family, mlp in ((T5, "layer.1"), (T5_DECODER, "layer.2"))
)
BART = Family(
    layers="encoder.layers",
    norm="encoder.layer_norm",
    stack="encoder",
    out="out_proj",
    mlp="",
    down="fc2",
    router="",
    mid="self_attn_layer_norm.output",
    order=POST,
    attn_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
    heads="encoder_attention_heads",
)
BART_DECODER = replace(
    BART,
    layers="decoder.layers",
    norm="decoder.layer_norm",
    stack="decoder",
    cross="encoder_attn",
    cross_norm="encoder_attn_layer_norm",
    mid="encoder_attn_layer_norm.output",
    heads="decoder_attention_heads",
)
MBART, MBART_DECODER = (
    replace(
        family,
        mid="final_layer_norm.input",
        order=PRE,
        attn_norm="",
        cross_norm="",
        mlp_norm="",
    )
    for family in (BART, BART_DECODER)
)
XGLM = replace(
    MBART,
    layers="layers",
    norm="layer_norm",
    stack="",
    pattern="source.nn_functional_dropout_0.input",
    heads="num_attention_heads",
)
VIT = Family(
    layers="layers|encoder.layer",
    norm="layernorm",
    attn="attention",
    kernel="attention",
    q="q_proj|attention.query",
    k="k_proj|attention.key",
    v="v_proj|attention.value",
    out="o_proj|output.dense",
    down="fc2|weights_out|output.dense",
    router="",
    mid="layernorm_after.input",
)
DINO = replace(
    VIT, mid="norm2.input", order=BETWEEN, attn_norm="layer_scale1", mlp_norm="layer_scale2"
)
CLIP = Family(
    layers="encoder.layers",
    norm="final_layer_norm|post_layernorm",
    out="out_proj",
    down="fc2",
    mid="layer_norm2.input",
    router="",
)
CLIP_BOTH = tuple(
    replace(CLIP, stack=part, layers=f"{part}.encoder.layers", norm=f"{part}.{norm}")
    for part, norm in (("text_model", "final_layer_norm"), ("vision_model", "post_layernorm"))
)
