"""Blocks of all verbs, to run here and in a sandbox. Each gives what it saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers

import nnsight
from tests.conftest import states

IN_TUPLES = transformers.__version__.startswith("4.")

Block = Callable[[Any, Any], Any]


def table() -> tuple[dict[str, Block], Callable[[Block], Block]]:
    """Functions by name, and what puts one there."""
    found: dict[str, Block] = {}

    def kept(function: Block) -> Block:
        return found.setdefault(function.__name__, function)

    return found, kept


BLOCKS, block = table()


def put_out(hidden: torch.Tensor) -> Any:
    """Hidden states as a block of GPT-2 puts them out: in transformers 4 in a tuple."""
    return (hidden,) if IN_TUPLES else hidden


ONE, TWO = "The cat sat on the", "The capital of France"


@block
def reads(model, at):
    with model.trace(ONE, backend=at) as tracer:
        a = model.transformer.h[1].input.save()
        b = model.transformer.h[1].output.save()
        c = nnsight.save(sorted(model.transformer.h[2].attn.inputs[1]))
        logits = model.lm_head.output.save()
        result = tracer.result.logits.save()
    return a, b, c, logits, result


@block
def writes(model, at):
    with model.trace(ONE, backend=at):
        model.transformer.h[1].output = put_out(states(model.transformer.h[1]) * 2)
        model.transformer.h[3].mlp.input = model.transformer.h[3].mlp.input + 1
        logits = model.lm_head.output.save()
    return logits


@block
def ids_beside_embeddings(model, at):
    embeds = torch.linspace(-1, 1, 3 * model.config.n_embd).reshape(1, 3, -1)
    with model.trace(backend=at) as tracer:
        with tracer.invoke(ONE):
            model.transformer.wte.output[:, 0] = 0
            one = model.lm_head.output.save()
        with tracer.invoke(inputs_embeds=embeds):
            two = model.lm_head.output.save()
    return one, two


@block
def changes_in_place(model, at):
    with model.trace(ONE, backend=at):
        model.transformer.wte.output[:, 0] = 0
        h = model.transformer.h[0].mlp.output
        h[:, -1] += 1
        h.mul_(0.5).save()
        model.transformer.h[2].mlp.output.detach()[:] = 0.25
        model.transformer.h[3].mlp.output.data[:, 1] = 7
        logits = model.lm_head.output.save()
    return h, logits


@block
def changes_through_numpy(model, at):
    with model.trace(ONE, backend=at):
        model.transformer.h[2].mlp.output.detach().numpy()[:] = 0.25
        logits = model.lm_head.output.save()
    return logits


@block
def same_object(model, at):
    with model.trace(ONE, backend=at):
        a = model.transformer.h[1].mlp.output
        b = model.transformer.h[1].mlp.output
        same = nnsight.save([a is b, a.data_ptr() == b.data_ptr()])
    return same


@block
def skips(model, at):
    with model.trace(ONE, backend=at):
        model.transformer.h[1].skip(put_out(model.transformer.h[1].input))
        model.transformer.h[2].mlp.skip(torch.zeros_like(model.transformer.h[2].mlp.input))
        logits = model.lm_head.output.save()
    return logits


@block
def stops(model, at):
    with model.trace(ONE, backend=at) as tracer:
        h = model.transformer.h[1].mlp.output.save()
        tracer.stop()
    return h


@block
def calls(model, at):
    with model.trace(ONE, backend=at):
        h = states(model.transformer.h[1])
        lens = model.lm_head(model.transformer.ln_f(h)).save()
        norm = model.lm_head.weight.norm().save()
        bias = model.transformer.h[0].mlp.c_fc.bias[:3].save()
        mine = (h @ model.lm_head.weight.T).save()
    return lens, norm, bias, mine


@block
def invokes(model, at):
    with model.trace(backend=at) as tracer:
        with tracer.invoke(ONE):
            h = model.transformer.h[1].mlp.output
            a = model.lm_head.output.save()
        with tracer.invoke(TWO):
            model.transformer.h[1].mlp.output[:, -1] = h[:, -1] * 3
            b = model.lm_head.output.save()
        with tracer.invoke():
            c = model.lm_head.output.save()
    return a, b, c


@block
def barriers(model, at):
    with model.trace(backend=at) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(ONE):
            h = model.transformer.h[1].mlp.output[:, -1]
            barrier()
            a = model.lm_head.output.save()
        with tracer.invoke(TWO):
            barrier()
            model.transformer.h[1].mlp.output[:, -1] = h
            b = model.lm_head.output.save()
    return a, b


@block
def generates(model, at):
    with model.generate(ONE, max_new_tokens=4, do_sample=False, backend=at) as tracer:
        found = [].save()
        for step in tracer.iter[:]:
            h = model.transformer.h[2].mlp.output
            if step == 1:
                h[:] = 0
            found.append(model.lm_head.output[0, -1].argmax(-1))
        ids = tracer.result.save()
    return found, ids


@block
def generates_for_two(model, at):
    with model.generate(max_new_tokens=3, do_sample=False, backend=at) as tracer:
        with tracer.invoke(ONE):
            a = [].save()
            for _ in tracer.iter[:]:
                a.append(model.lm_head.output[:, -1])
        with tracer.invoke(TWO):
            b = [].save()
            for step in tracer.iter[1:3]:
                model.transformer.h[0].mlp.output *= step
                b.append(model.lm_head.output[:, -1])
    return a, b


@block
def goes_on(model, at):
    with model.generate(ONE, max_new_tokens=3, do_sample=False, backend=at):
        a = model.lm_head.output[:, -1].save()
        b = model.lm_head.next().output[:, -1].save()
        c = model.lm_head.next().output[:, -1].save()
    return a, b, c


@block
def samples(model, at):
    with model.generate(ONE, max_new_tokens=4, do_sample=True, backend=at) as tracer:
        torch.manual_seed(3)
        noise = torch.randn(2).save()
        model.transformer.h[0].mlp.output += torch.randn(1)
        ids = tracer.result.save()
    return noise, ids


@block
def caches(model, at):
    with model.trace(ONE, backend=at) as tracer:
        cache = tracer.cache([model.transformer.h[1], "*.mlp"], include_inputs=True)
        model.transformer.h[0].mlp.output[:] = 1
    return [(path, view.output, view.input) for path, view in cache.items()]


@block
def operations(model, at):
    with model.trace(ONE, backend=at):
        source = model.transformer.h[1].mlp.source
        a = source.self_act_0.output.save()
        source.self_c_proj_0.output = source.self_c_proj_0.output * 0
        b = model.lm_head.output.save()
    return a, b


@block
def sessions(model, at):
    with model.session(backend=at):
        with model.trace(ONE):
            h = model.transformer.h[1].mlp.output
        total = h.sum()
        with model.trace(TWO):
            model.transformer.h[1].mlp.output[:, 0] = h[:, 0]
            logits = model.lm_head.output.save()
        lens = model.lm_head(h).save()
        total = total.save()
    return logits, lens, total


@block
def edits(model, at):
    with model.edit() as edited:
        edited.transformer.h[1].mlp.output[:] = 0
    with edited.trace(ONE, backend=at):
        h = edited.transformer.h[1].mlp.output.save()
        logits = edited.lm_head.output.save()
    return h, logits


@block
def scans(model, at):
    with model.scan(ONE, backend=at):
        width = model.transformer.h[1].mlp.output.shape[-1]
    with model.transformer.scan(torch.arange(3)[None], attention_mask=torch.ones(1, 3), backend=at):
        of_a_part = model.transformer.h[1].mlp.output.shape
    return width, of_a_part


@block
def results_are_replaced(model, at):
    with model.trace(ONE, backend=at) as tracer:
        out = model.output
        out.logits[:, -1] = 0
        out["logits"] = out.logits + 1
        model.output = out
        logits = tracer.result.logits.save()
    return logits


@block
def inputs_are_replaced(model, at):
    with model.trace(ONE, backend=at):
        args, kwargs = model.transformer.h[1].inputs
        model.transformer.h[1].inputs = (args[0] * 2, *args[1:]), kwargs
        logits = model.lm_head.output.save()
    return logits


@block
def without_gradients(model, at):
    with torch.no_grad(), model.trace(ONE, backend=at):
        h = model.transformer.h[1].mlp.output
        needs = h.requires_grad
        logits = model.lm_head.output.save()
        flag = nnsight.save([needs, logits.requires_grad])
    return logits, flag


@block
def rows_replaced(model, at):
    with model.trace([ONE, TWO], backend=at):
        h = model.transformer.h[1].mlp.output
        model.transformer.h[1].mlp.output = h.flip(0)
        logits = model.lm_head.output.save()
    return logits


@block
def many_invokes_write(model, at):
    with model.trace(backend=at) as tracer:
        for scale in (0.5, 1.0, 2.0):
            with tracer.invoke(ONE):
                model.transformer.h[1].mlp.output = model.transformer.h[1].mlp.output * scale
        with tracer.invoke():
            logits = model.lm_head.output.save()
    return logits


@block
def functions(model, at):
    def lens(layer):
        return model.lm_head(model.transformer.ln_f(states(model.transformer.h[layer])))

    with model.trace(ONE, backend=at):
        found = [lens(layer).argmax(-1) for layer in range(3)].save()
    return found


@block
def a_report_in_the_block(model, at):
    with model.trace(ONE, backend=at) as tracer:
        h = model.transformer.h[1].mlp.output
        h[:] = 0
        model.transformer.h[2].mlp.output = h * 2 + 1
        model.transformer.h[3].mlp.output.save()
        text = nnsight.save(str(tracer.report()))
        model.transformer.h[4].mlp.skip(model.transformer.h[4].mlp.input)
        h += 1
    return text


@block
def a_report_of_invokes_and_a_backward_pass(model, at):
    with model.session(backend=at):
        with model.trace() as tracer:
            with tracer.invoke(ONE):
                model.transformer.h[1].mlp.output.sum()
                model.transformer.h[2].mlp.output = model.transformer.h[2].mlp.output * 2
                model.transformer.h[3].mlp.output.save()
            with tracer.invoke(TWO):
                late = model.transformer.h[3].mlp.output
                with model.lm_head.output.sum().backward():
                    late.grad[:] = 0
                model.output.logits[:] = 3
        text = nnsight.save(str(tracer.report()))
    return text


@block
def a_report_after_a_stop(model, at):
    with model.session(backend=at):
        with model.trace(ONE) as tracer:
            model.transformer.h[3].mlp.output.save()
            tracer.stop()
        text = nnsight.save(str(tracer.report()))
    return text


@block
def parameters_in_a_session(model, at):
    with model.session(backend=at):
        norms = [p.norm().detach() for p in model.transformer.h[0].parameters()].save()
        names = [name for name, _ in model.transformer.h[0].mlp.named_parameters()].save()
        content = {k: v.sum() for k, v in model.transformer.h[1].mlp.state_dict().items()}
        with model.trace(ONE):
            of_block = [p.mean().detach() for p in model.transformer.ln_f.parameters()].save()
            logits = model.lm_head.output.save()
        sums = list(content.values()).save()
    return norms, names, sums, of_block, logits
