"""Blocks with gradients, to run here and in a sandbox. Each gives what it saved."""

from __future__ import annotations

import torch

import nnsight
from tests.server.sandbox.blocks import ONE, TWO, table

BLOCKS, block = table()
MISTAKES, mistake = table()


@block
def simple(model, at):
    with model.trace(ONE, backend=at):
        early = model.transformer.h[0].mlp.output
        late = model.transformer.h[2].mlp.output
        loss = model.lm_head.output[0, -1].log_softmax(-1)[3]
        with loss.backward():
            a = late.grad.save()
            b = early.grad.save()
    return a, b


@block
def plain(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[1].mlp.output
        h.retain_grad()
        loss = model.lm_head.output.sum() + h.norm()
        loss.backward()
        g = h.grad.save()
    return g


@block
def autograd_grad(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[1].mlp.output
        k = h * 3
        loss = model.lm_head.output.sum() + h.norm() + k.sum()
        g = torch.autograd.grad(loss, [h, k])
        nnsight.save(g)
    return g


@block
def written(model, at):
    with model.trace(ONE, backend=at):
        delta = torch.full((48,), 0.1, requires_grad=True)
        h = model.transformer.h[1].mlp.output
        y = h * 2 + delta
        z = y * 1.5
        model.transformer.h[1].mlp.output = z
        late = model.transformer.h[3].mlp.output
        loss = model.lm_head.output[0, -1].log_softmax(-1)[3] + z.norm() + y.sum()
        with loss.backward():
            late_one = late.grad.save()
            gz = z.grad.save()
            gy = y.grad.save()
            gd = delta.grad.save()
            gh = h.grad.save()
    return late_one, gz, gy, gd, gh


@block
def in_place(model, at):
    with model.trace(ONE, backend=at):
        delta = torch.full((48,), 0.1, requires_grad=True)
        e = model.transformer.h[0].mlp.output
        h = model.transformer.h[1].mlp.output
        h[:, -1] += delta
        h *= 2
        late = model.transformer.h[3].mlp.output
        loss = model.lm_head.output[0, -1].log_softmax(-1)[3] + h.norm()
        with loss.backward():
            late_one = late.grad.save()
            gh = h.grad.save()
            gd = delta.grad.save()
            ge = e.grad.save()
    return late_one, gh, gd, ge


@block
def changes(model, at):
    with model.trace(ONE, backend=at):
        e = model.transformer.h[0].mlp.output
        h = model.transformer.h[2].mlp.output
        with model.lm_head.output[0, -1].log_softmax(-1)[3].backward():
            h.grad[:, :-1] = 0
            h.grad = h.grad / h.grad.norm()
            g = e.grad.save()
    return g


@block
def invokes(model, at):
    with model.trace(backend=at) as tracer:
        out = [None, None, None, None].save()
        for i, t in enumerate((ONE, TWO)):
            with tracer.invoke(t):
                e = model.transformer.h[0].mlp.output
                h = model.transformer.h[2].mlp.output
                loss = model.lm_head.output[0, -1].log_softmax(-1)[3]
                with loss.backward():
                    out[2 * i] = h.grad
                    out[2 * i + 1] = e.grad
    return out


@block
def leaf(model, at):
    model.requires_grad_(False)
    try:
        with model.trace(ONE, backend=at):
            h = model.transformer.h[1].mlp.output.requires_grad_()
            late = model.transformer.h[3].mlp.output
            with model.lm_head.output[0, -1].log_softmax(-1)[3].backward():
                late_one = late.grad.save()
                g = h.grad.save()
    finally:
        model.requires_grad_(True)
    return late_one, g


@block
def weights(model, at):
    model.zero_grad()
    with model.trace(ONE, backend=at):
        w = model.transformer.h[1].mlp.c_fc.weight
        loss = model.lm_head.output[0, -1].log_softmax(-1)[3] + w.norm()
        loss.backward()
        g = w.grad.save()
        g2 = model.transformer.h[2].mlp.c_fc.weight.grad.save()
    model.zero_grad()
    return g, g2


@block
def sessions(model, at):
    with model.session(backend=at):
        delta = torch.zeros(48, requires_grad=True)
        opt = torch.optim.SGD([delta], 0.1)
        losses = [].save()
        for _ in range(3):
            with model.trace(ONE):
                model.transformer.h[1].mlp.output = model.transformer.h[1].mlp.output + delta
                loss = -model.lm_head.output[0, -1].log_softmax(-1)[3]
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.detach())
        delta.save()
    return losses, delta


@block
def calls(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[1].mlp.output
        lens = model.lm_head(model.transformer.ln_f(h))
        with lens.sum().backward():
            g = h.grad.save()
    return g


@block
def views(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[1].mlp.output
        v = h[:, -1]
        with (model.lm_head.output.sum() + v.norm()).backward():
            g = v.grad.save()
    return g


@block
def hooks(model, at):
    with model.trace(ONE, backend=at):
        e = model.transformer.h[0].mlp.output
        h = model.transformer.h[1].mlp.output
        seen = [].save()
        e.register_hook(lambda g: seen.append(g))
        h.register_hook(lambda g: g * 2)
        model.lm_head.output.sum().backward()
    return seen


@block
def retained(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[2].mlp.output
        logits = model.lm_head.output
        with logits[0, -1, 3].backward(retain_graph=True, inputs=[h]):
            one = h.grad.save()
        with logits[0, -1].sum().backward(inputs=[h]):
            two = h.grad.save()
    return one, two


@block
def call_in_backward(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[2].mlp.output
        with model.lm_head.output.sum().backward():
            b = model.transformer.ln_f(h.grad).save()
    return b


@block
def stop_in_backward(model, at):
    with model.trace(ONE, backend=at) as tracer:
        h = model.transformer.h[2].mlp.output
        with model.lm_head.output.sum().backward():
            b = h.grad.save()
            tracer.stop()
    return b


@block
def own_function(model, at):
    with model.trace(ONE, backend=at):

        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, k):
                ctx.k = k
                return x * k

            @staticmethod
            def backward(ctx, g):
                return g * ctx.k * 2, None

        h = model.transformer.h[2].mlp.output
        model.transformer.h[2].mlp.output = Double.apply(h, 3.0)
        with model.lm_head.output.sum().backward():
            b = h.grad.save()
    return b


@block
def edited(model, at):
    with model.edit() as edited:
        edited.transformer.h[1].mlp.output *= 2
    with edited.trace(ONE, backend=at):
        e = edited.transformer.h[0].mlp.output
        h = edited.transformer.h[1].mlp.output
        with edited.lm_head.output[0, -1, 3].backward():
            a = h.grad.save()
            b = e.grad.save()
    return a, b


@block
def late(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[2].mlp.output.save()
        loss = model.lm_head.output.sum().save()
    return h, loss


@block
def cross(model, at):
    with model.trace(backend=at) as tracer:
        with tracer.invoke(ONE):
            h = model.transformer.h[1].mlp.output
        with tracer.invoke(TWO):
            model.transformer.h[1].mlp.output[:, -1] = h[:, -1] * 3
            b = model.lm_head.output
            with b.norm().backward():
                g = h.grad.save()
    return g


@block
def invokes_plain(model, at):
    with model.trace(backend=at) as tracer:
        found = [].save()
        for text in (ONE, TWO, ONE):
            with tracer.invoke(text):
                h = model.transformer.h[1].mlp.output
                model.transformer.h[2].mlp.output = model.transformer.h[2].mlp.output * 0.5
                h.retain_grad()
                model.lm_head.output[:, -1].norm().backward()
                found.append(h.grad)
    return found


@block
def frozen_invokes(model, at):
    model.requires_grad_(False)
    try:
        with model.trace(backend=at) as tracer:
            found = [].save()
            for text in (ONE, TWO):
                with tracer.invoke(text):
                    h = model.transformer.h[1].mlp.output.requires_grad_()
                    late_one = model.transformer.h[3].mlp.output
                    with model.lm_head.output[:, -1].norm().backward():
                        found.append(late_one.grad)
                        found.append(h.grad)
    finally:
        model.requires_grad_(True)
    return found


@block
def detached_leaf(model, at):
    with model.trace(ONE, backend=at):
        x = model.transformer.wte.output.detach().requires_grad_()
        model.transformer.wte.output = x
        with model.lm_head.output[0, -1, 3].backward():
            g = x.grad.save()
    return g


@block
def jac(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[1].mlp.output
        late_one = model.transformer.h[2].mlp.output
        rows = [
            torch.autograd.grad(late_one[0, -1, i], h, retain_graph=True)[0] for i in range(3)
        ].save()
    return rows


@block
def operation(model, at):
    with model.trace(ONE, backend=at):
        e = model.transformer.h[0].mlp.output
        a = model.transformer.h[1].mlp.source.self_act_0.output
        model.transformer.h[1].mlp.source.self_act_0.output = a * 2
        with model.lm_head.output[0, -1, 3].backward():
            g = a.grad.save()
            k = e.grad.save()
    return g, k


@block
def detached_in_place(model, at):
    with model.trace(ONE, backend=at):
        e = model.transformer.h[0].mlp.output
        h = model.transformer.h[1].mlp.output
        h.data[:, 0] = 0.5
        with torch.no_grad():
            model.transformer.h[2].ln_1.output.mul_(1.5)
        with model.lm_head.output[0, -1, 3].backward():
            g = h.grad.save()
            k = e.grad.save()
    return g, k


@block
def inference_of_own(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[1].mlp.output.detach()
        w = torch.ones(48, requires_grad=True)
        with (h * w).sum().backward():
            g = w.grad.save()
    return g


@mistake
def wrong_order(model, at):
    with model.trace(ONE, backend=at):
        e = model.transformer.h[0].mlp.output
        h = model.transformer.h[2].mlp.output
        with model.lm_head.output.sum().backward():
            a = e.grad.save()
            b = h.grad.save()
    return a, b


@mistake
def not_upstream(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[2].mlp.output
        c = h * 1
        with model.lm_head.output.sum().backward():
            b = c.grad.save()
    return b


@mistake
def not_upstream2(model, at):
    with model.trace(ONE, backend=at):
        e = model.transformer.h[0].mlp.output
        h = model.transformer.h[2].mlp.output
        with e.sum().backward():
            b = h.grad.save()
    return b


@mistake
def no_grad_of(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[2].mlp.output.detach()
        with model.lm_head.output.sum().backward():
            b = h.grad.save()
    return b


@mistake
def wrong_shape(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[2].mlp.output
        with model.lm_head.output.sum().backward():
            h.grad = torch.zeros(3)
    return 1


@mistake
def twice(model, at):
    with model.trace(ONE, backend=at):
        loss = model.lm_head.output.sum()
        loss.backward()
        loss.backward()
    return 1


@mistake
def read_in_backward(model, at):
    with model.trace(ONE, backend=at):
        with model.lm_head.output.sum().backward():
            b = model.transformer.h[3].output.save()
    return b


@mistake
def error_in_backward(model, at):
    with model.trace(ONE, backend=at):
        h = model.transformer.h[2].mlp.output
        with model.lm_head.output.sum().backward():
            b = h.grad.save()
            _ = 1 / 0
    return b


@mistake
def unused(model, at):
    with model.trace(ONE, backend=at):
        e = model.transformer.h[0].mlp.output
        h = model.transformer.h[1].mlp.output
        g = torch.autograd.grad(e.sum(), h)[0].save()
    return g
