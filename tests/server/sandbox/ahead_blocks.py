"""Blocks that ask for values and go on without them, to run here and in a sandbox."""

from __future__ import annotations

from tests.server.sandbox.blocks import ONE, TWO, table

BLOCKS, block = table()
MISTAKES, mistake = table()


@block
def out_of_order(model, at):
    with model.trace(ONE, backend=at):
        late = model.transformer.h[3].mlp.output.save()
        early = model.transformer.h[1].mlp.output[0].save()
        first = model.transformer.wte.output.clone().save()
    return late, early, first


@block
def listed(model, at):
    with model.trace(ONE, backend=at):
        found = [model.transformer.h[i].mlp.output for i in (5, 3, 1)].save()
        logits = model.lm_head.output.save()
    return found, logits


@block
def appended(model, at):
    with model.trace(ONE, backend=at):
        found = [].save()
        for i in reversed(range(4)):
            found.append(model.transformer.h[i].mlp.output)
        model.transformer.h[6].mlp.output[:] = 0
        logits = model.lm_head.output.save()
    return found, logits


@block
def dicts(model, at):
    with model.trace(ONE, backend=at):
        found = {}.save()
        for i in (3, 1, 2):
            found[i] = model.transformer.h[i].mlp.output
    return [found[i] for i in (3, 1, 2)]


@block
def ahead_grad(model, at):
    with model.trace(ONE, backend=at):
        late = model.transformer.h[3].mlp.output
        e = model.transformer.h[1].mlp.output
        loss = model.lm_head.output[0, -1, 3]
        with loss.backward():
            a = late.grad.save()
            b = e.grad.save()
    return a, b


@block
def steps_ahead(model, at):
    with model.generate(ONE, max_new_tokens=3, do_sample=False, backend=at) as tracer:
        found = [].save()
        for _step in tracer.iter[:]:
            found.append(model.lm_head.output[:, -1])
            found.append(model.transformer.h[2].mlp.output[:, -1])
    return found


@block
def observed(model, at):
    with model.trace(backend=at) as tracer:
        with tracer.invoke(ONE):
            model.transformer.h[3].mlp.output.sum()
            a = model.transformer.ln_f.output.save()
        with tracer.invoke(TWO):
            b = model.transformer.ln_f(model.transformer.h[1].mlp.output).save()
    return a, b


@mistake
def invokes_ahead(model, at):
    with model.trace(backend=at) as tracer:
        with tracer.invoke(ONE):
            a = model.transformer.h[3].mlp.output.save()
            b = model.transformer.h[1].mlp.output.save()
        with tracer.invoke(TWO):
            model.transformer.h[1].mlp.output[:] = 1
            c = model.lm_head.output.save()
            d = model.transformer.h[0].mlp.output.save()
    return a, b, c, d


@mistake
def after_it_has_passed(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[3].mlp.output + 1
        a = h.sum().save()
        early = model.transformer.h[1].mlp.output.save()
    return a, early


@mistake
def of_a_second_step(model, at):
    with model.trace(ONE, backend=at):
        a = model.transformer.h[3].mlp.output.save()
        b = model.transformer.h[4].next().mlp.output.save()
    return a, b


@mistake
def of_a_skipped_module(model, at):
    with model.trace(ONE, backend=at):
        model.transformer.h[3].skip(model.transformer.h[3].input)
        a = model.transformer.h[3].mlp.output.save()
        b = model.transformer.h[5].mlp.output.save()
    return a, b


@mistake
def bad_path(model, at):
    with model.trace(ONE, backend=at):
        b = model.transformer.h[3].mlp.output[7].save()
        a = model.transformer.h[2].mlp.output.save()
    return a, b


@mistake
def a_bad_path_of_what_is_not_kept(model, at):
    with model.trace(ONE, backend=at):
        model.transformer.h[3].mlp.output[7]
        a = model.transformer.h[2].mlp.output.save()
        c = a.sum().save()
    return a, c
