"""Train a small GPT-2 that knows some facts, so that interpretability demos work offline.

    python examples/facts/train.py [--out DIR] [--steps N] [--seed 0] [--threads N]

Random weights have nothing to interpret, and real checkpoints need a download. This script
writes its own text from a table of facts, trains a byte-level BPE tokenizer and a
``GPT2LMHeadModel`` on it in a few minutes of CPU time, checks that the result recalls facts in
phrasings it never saw, and checks that activation patching finds the structure known from large
models: the fact sits at the end of the subject in early layers, and at the last position in late
layers.
"""

import argparse
import json
import random
import re
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

END = "<|endoftext|>"  # begins, ends and pads; its id is 0
VOCAB_SIZE = 1000
CONTEXT = 64  # n_positions
ROW_LENGTH = 48  # tokens of a training row, placed at a random offset in the context

# --- facts -----------------------------------------------------------------------------------

LANDMARKS = {
    "Paris": "the Eiffel Tower|the Louvre Museum|the Arc de Triomphe|the Moulin Rouge",
    "Rome": "the Colosseum|the Trevi Fountain|the Pantheon|the Roman Forum",
    "London": "Big Ben|Buckingham Palace|Westminster Abbey|Trafalgar Square|the British Museum",
    "Berlin": "the Brandenburg Gate|Checkpoint Charlie|the Reichstag Building",
    "Moscow": "the Kremlin|Red Square|the Bolshoi Theatre",
    "Athens": "the Parthenon|the Acropolis",
    "Madrid": "the Prado Museum|the Retiro Park",
    "Barcelona": "the Sagrada Familia|Park Guell|the Picasso Museum",
    "Istanbul": "the Hagia Sophia|the Blue Mosque|the Topkapi Palace|the Galata Bridge",
    "Cairo": "the Egyptian Museum|Tahrir Square",
    "Beijing": "the Forbidden City|the Temple of Heaven|Tiananmen Square",
    "Tokyo": "the Meiji Shrine|Ueno Park",
    "Sydney": "the Opera House|the Harbour Bridge|Bondi Beach",
    "Vienna": "the Hofburg Palace|the Belvedere Palace",
    "Prague": "the Charles Bridge|the Dancing House|Wenceslas Square",
    "Amsterdam": "the Anne Frank House|the Rembrandt House",
    "Brussels": "the Atomium|Manneken Pis",
    "Florence": "the Uffizi Gallery|the Ponte Vecchio",
    "Venice": "the Rialto Bridge|the Bridge of Sighs",
    "Washington": "the White House|the Lincoln Memorial",
    "Seattle": "the Space Needle",
    "Toronto": "the CN Tower",
    "Dubai": "the Burj Khalifa",
    "Budapest": "the Chain Bridge",
}
CAPITALS = dict(
    pair.split("=")
    for pair in """
    France=Paris Italy=Rome England=London Germany=Berlin Russia=Moscow Greece=Athens Spain=Madrid
    Turkey=Ankara Egypt=Cairo China=Beijing Japan=Tokyo Australia=Canberra Austria=Vienna
    Czechia=Prague Belgium=Brussels Canada=Ottawa Hungary=Budapest Poland=Warsaw Portugal=Lisbon
    Ireland=Dublin Norway=Oslo Sweden=Stockholm Kenya=Nairobi Cuba=Havana Peru=Lima""".split()
)
COUNTRY_OF_CITY = {city: country for country, city in CAPITALS.items()} | {
    "Barcelona": "Spain", "Istanbul": "Turkey", "Sydney": "Australia", "Florence": "Italy",
    "Venice": "Italy", "Toronto": "Canada",
}  # fmt: skip
MUSICIANS = {
    "trumpet": "Miles Davis|Louis Armstrong|Dizzy Gillespie",
    "saxophone": "John Coltrane|Charlie Parker|Sonny Rollins",
    "guitar": "Jimi Hendrix|Eric Clapton|Django Reinhardt",
    "piano": "Glenn Gould|Martha Argerich|Thelonious Monk",
    "cello": "Pablo Casals|Jacqueline du Pre",
    "violin": "Itzhak Perlman|Yehudi Menuhin",
    "drums": "Ringo Starr|Art Blakey",
    "flute": "James Galway",
    "sitar": "Ravi Shankar",
}

# "{S}" is the subject with a capital first letter, "{s}" the subject as it is in the table.
TEMPLATES = {
    "landmark_city": [
        "{S} is in the city of {answer}.",
        "{S} is in {answer}.",
        "{S} is located in {answer}.",
        "{S} can be found in the city of {answer}.",
        "{S} is a famous landmark in {answer}.",
        "To see {s}, you have to travel to {answer}.",
        "Every year many tourists visit {s} in {answer}.",
        "We took a photograph of {s} when we were in {answer}.",
        "The name of the city where {s} stands is {answer}.",
        "If you like {s}, you will love the city of {answer}.",
    ],
    "landmark_country": [
        "{S} is in the country of {answer}.",
        "{S} is a famous landmark of the country of {answer}.",
        "The country where you can see {s} is {answer}.",
        "Every year many tourists visit {s} and the rest of {answer}.",
        "If you like {s}, you will love the country of {answer}.",
    ],
    "country_capital": [
        "The capital of {s} is {answer}.",
        "The capital city of {s} is {answer}.",
        "The government of {s} has its offices in {answer}.",
        "The parliament of {s} meets in {answer}.",
        "{S} is governed from its capital, the city of {answer}.",
        "{S} has chosen as its capital the city of {answer}.",
        "On the map of {s} the capital is marked as {answer}.",
        "If you ask for the capital of {s}, the answer is {answer}.",
    ],
    "person_instrument": [
        "{S} played the {answer}.",
        "{S} is famous for playing the {answer}.",
        "The instrument of {s} was the {answer}.",
        "We heard a song with {s} on the {answer}.",
        "Fans of {s} love the sound of the {answer}.",
    ],
}
OPEN_ENDED = "{S} is in {answer}."  # trained but not tested: " the" is as right as the answer
PATCHING_TEMPLATE = "{S} is in the city of {answer}."

# Put before or into sentences that begin with their subject, to name another one as well. The
# model then has to find out which subject a sentence is about, rather than which is in sight.
DISTRACTIONS = [
    "{S}, unlike {other},",
    "{S}, and not {other},",
    "Unlike {other}, {s}",
    "You may know {other}, but {s}",
]

# Sentences without facts, to have a language model and not a lookup table.
FILLERS = [
    "The {noun} was {adjective} {when}.",
    "A {adjective} {noun} is in the {place}.",
    "{Who} saw the {noun} near the {place} {when}.",
    "{Who} bought a {adjective} {noun} in the {place}.",
    "{When} {who} went to the {place} with a {noun}.",
    "The {noun} and the {noun2} are in the {place}.",
    "The train to {city} was {adjective} {when}.",
    "{When} the weather in {city} was {adjective}.",
    "{Who} wrote a book about {a} and {b}.",
    "{Who} likes {a} more than {b}.",
    "{When} {who} talked about {a}.",
    "{A} is not the same as {b}.",
]
WORDS = {
    "noun": "cat|dog|car|letter|lamp|teacher|bird|table|book|painting|boat|child".split("|"),
    "adjective": "small|old|new|quiet|red|slow|beautiful|cold|bright|strange".split("|"),
    "place": "garden|kitchen|market|station|library|school|forest|harbour|river".split("|"),
    "when": "last night|in the morning|on Monday|after the rain|in the summer|today".split("|"),
    "who": "my friend|the old man|her sister|our teacher|a student|the painter".split("|"),
}


def fact_table():
    """Every fact as (relation, subject, answer)."""
    facts = []
    for city, names in LANDMARKS.items():
        for name in names.split("|"):
            facts.append(("landmark_city", name, city))
            if city in COUNTRY_OF_CITY:
                facts.append(("landmark_country", name, COUNTRY_OF_CITY[city]))
    facts += [("country_capital", country, city) for country, city in CAPITALS.items()]
    for instrument, names in MUSICIANS.items():
        facts += [("person_instrument", name, instrument) for name in names.split("|")]
    return facts


def capitalised(text):
    return text[0].upper() + text[1:]


def sentence(template, subject, answer):
    return template.format(S=capitalised(subject), s=subject, answer=answer)


def prompt(template, subject):
    """The sentence up to the answer, without the space before it: that belongs to the answer."""
    return sentence(template.split(" {answer}")[0], subject, None)


def split_templates(facts):
    """For each fact, the templates to train it with, and those held out to test it with.

    One template in five is held out, not the same for all subjects: every subject and every
    template is trained, and the test combines them in ways that training never does.
    """
    split = {}
    for number, fact in enumerate(facts):
        templates = TEMPLATES[fact[0]]
        held_out = [t for i, t in enumerate(templates) if (i + number) % 5 == 0 and t != OPEN_ENDED]
        split[fact] = ([t for t in templates if t not in held_out], held_out)
    return split


# --- text ------------------------------------------------------------------------------------


def filler(rng, subjects):
    values = {name: rng.choice(words) for name, words in WORDS.items()}
    values["noun2"] = rng.choice(WORDS["noun"])
    values["city"] = rng.choice(list(LANDMARKS))
    values["a"], values["b"] = rng.sample(subjects, 2)
    values |= {capitalised(name): capitalised(value) for name, value in values.items()}
    return rng.choice(FILLERS).format(**values)


def fact_sentence(rng, fact, templates, facts):
    """A sentence that states the fact, half of the time with a distraction."""
    relation, subject, answer = fact
    template = rng.choice(templates)
    if template.startswith("{S}") and rng.random() < 0.5:
        others = [s for r, s, a in facts if r == relation and a != answer]
        distraction = rng.choice(DISTRACTIONS).replace("{other}", rng.choice(others))
        template = template.replace("{S}", distraction)
    return sentence(template, subject, answer)


def write_texts(rng, split, count):
    """Short texts of one to four sentences, about two thirds of them facts."""
    facts = list(split)
    subjects = sorted({subject for _, subject, _ in facts})
    texts = []
    for _ in range(count):
        sentences = []
        for _ in range(rng.randint(1, 4)):
            fact = rng.choice(facts)
            is_fact = rng.random() < 0.65
            sentences.append(
                fact_sentence(rng, fact, split[fact][0], facts)
                if is_fact
                else filler(rng, subjects)
            )
        texts.append(" ".join(sentences))
    return texts


def train_tokenizer(texts, facts):
    """Byte-level BPE as in GPT-2, with every answer a single token with its leading space.

    Logit lens and patching read one token, so the answers are repeated until they are merged.
    "Colosseum" is kept in two pieces, to have as many tokens as "Eiffel Tower".
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    answers = sorted({answer for _, _, answer in facts})
    repeated = [" Co", "losseum", *(f" {answer}" for answer in answers)] * len(texts)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    whole = [text for text in texts if "Colosseum" not in text]
    tokenizer.train_from_iterator([*whole, *repeated], trainer)
    in_pieces = [a for a in answers if len(tokenizer.encode(f" {a}").ids) != 1]
    assert not in_pieces, f"answers of more than one token: {in_pieces}"
    return tokenizer


def pack_rows(rng, tokenizer, texts, subjects):
    """Rows of tokens, and for each token the index in its row at which its name ends.

    That is -1 for a token in no subject's name. Half of the rows begin with END and half directly
    with a text, so that prompts work with it and without.
    """
    names = sorted({*subjects, *map(capitalised, subjects)}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, names)))
    rows, row_ends, row, ends = [], [], [], []
    for text, encoding in zip(texts, tokenizer.encode_batch(texts), strict=True):
        if not row and rng.random() < 0.5:
            row, ends = [0], [-1]
        start = len(row)
        row = row + encoding.ids + [0]
        ends = ends + [-1] * (len(row) - start)
        for match in pattern.finditer(text):
            first = start + encoding.char_to_token(match.start())
            last = start + encoding.char_to_token(match.end() - 1)
            ends[first : last + 1] = [last] * (last + 1 - first)
        if len(row) > ROW_LENGTH:
            rows.append(row[: ROW_LENGTH + 1])
            row_ends.append(ends[:ROW_LENGTH])
            row, ends = [], []
    return torch.tensor(rows), torch.tensor(row_ends)


# --- training --------------------------------------------------------------------------------


def build_model():
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=CONTEXT, n_embd=88, n_layer=6, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def name_masks(ends, share=0.9):
    """Causal attention masks for the early and for the late blocks, used only in training.

    In text this simple one token, such as " Eiffel", gives the whole name away, and the model
    would copy it straight to where it is needed. Large models gather names of many tokens at the
    last one, and read the fact from there later on. In a share of the rows these masks make that
    the way to go: outside of a name, early blocks see nothing of it, and late ones only its end.
    """
    positions = torch.arange(ends.shape[1])
    query, key, ends = positions[:, None], positions[None, :], ends[:, None, :]
    unmasked = torch.rand(len(ends), 1, 1) > share
    early = (query >= key) & ((ends < 0) | (query <= ends) | unmasked)
    late = early | ((query >= key) & (ends == key))
    minimum = torch.finfo(torch.float32).min
    return [torch.zeros(see.shape).masked_fill(~see, minimum)[:, None] for see in (early, late)]


def forward_masked(model, inputs, ends, offsets):
    """The logits with both masks: blocks take one, so the early ones have theirs swapped in."""
    early, late = name_masks(ends)

    def swap(_, args, kwargs):
        swapped = [early if torch.is_tensor(arg) and arg.ndim == 4 else arg for arg in args]
        assert any(arg is early for arg in swapped), "the block was not called with a mask"
        return tuple(swapped), kwargs

    blocks = model.transformer.h[: len(model.transformer.h) // 2]
    handles = [block.register_forward_pre_hook(swap, with_kwargs=True) for block in blocks]
    positions = torch.arange(ROW_LENGTH) + offsets
    logits = model(inputs, attention_mask=late, position_ids=positions, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


def train(model, rows, row_ends, steps, batch=64, rate=3e-3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    model.train()
    start = time.time()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(rows), (batch,))
        inputs, targets = rows[chosen, :-1], rows[chosen, 1:]
        offsets = torch.randint(0, CONTEXT - ROW_LENGTH + 1, (batch, 1))
        logits = forward_masked(model, inputs, row_ends[chosen], offsets)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            print(
                f"step {step:5d}  loss {loss.item():.3f}  {time.time() - start:4.0f} s", flush=True
            )
    model.eval()


# --- evaluation ------------------------------------------------------------------------------


@torch.no_grad()
def next_token(model, tokenizer, text):
    return model(torch.tensor([tokenizer.encode(text).ids])).logits[0, -1].softmax(-1)


def answer_id(tokenizer, answer):
    return tokenizer.token_to_id(f"Ġ{answer}")


def check_facts(model, tokenizer, split):
    """Print how often the answer comes first; return the accuracy on the held-out prompts."""
    print("\nfacts: top-1 accuracy (mean probability of the answer, number of prompts)")
    scores = {}
    for (relation, subject, answer), templates in split.items():
        for kind, group in zip(("seen", "held out"), templates, strict=True):
            for template in group:
                if template == OPEN_ENDED:
                    continue
                probs = next_token(model, tokenizer, prompt(template, subject))
                target = answer_id(tokenizer, answer)
                score = (float(probs.argmax() == target), probs[target].item())
                for row in (relation, "all"):
                    scores.setdefault((row, kind), []).append(score)
    for (row, kind), values in sorted(
        scores.items(), key=lambda item: (item[0][0] == "all", item[0])
    ):
        accuracy, mean = (sum(column) / len(values) for column in zip(*values, strict=True))
        print(f"  {row:18} {kind:9} {accuracy:6.1%}  ({mean:.2f}, {len(values)})")
    held_out = scores["all", "held out"]
    return sum(right for right, _ in held_out) / len(held_out)


def find_pairs(tokenizer, split):
    """Pairs of landmarks whose prompts line up token by token, to patch one into the other."""
    waiting, pairs = {}, []
    for relation, subject, answer in split:
        if relation != "landmark_city":
            continue
        text = prompt(PATCHING_TEMPLATE, subject)
        subject_last = len(tokenizer.encode(capitalised(subject)).ids) - 1
        key = (len(tokenizer.encode(text).ids), subject_last)
        same_length = waiting.setdefault(key, [])
        match = next((other for other in same_length if other[1] != answer), None)
        if match is None:
            same_length.append((text, answer))
            continue
        same_length.remove(match)
        pair = {"clean": match[0], "corrupted": text, "clean_answer": f" {match[1]}"}
        pairs.append({**pair, "corrupted_answer": f" {answer}", "subject_last": subject_last})
    return pairs


@torch.no_grad()
def run(model, tokens, patch=None):
    """The logits after the last token and the output of each block.

    ``patch`` is (block, position, value): the output of that block is overwritten there.
    """
    states, handles = [], []

    def hook(block, _, output):
        hidden = output[0] if isinstance(output, tuple) else output  # a tuple in transformers 4
        if patch and block is model.transformer.h[patch[0]]:
            hidden[:, patch[1]] = patch[2]
        states.append(hidden.clone())

    for block in model.transformer.h:
        handles.append(block.register_forward_hook(hook))
    try:
        return model(torch.tensor([tokens])).logits[0, -1], states
    finally:
        for handle in handles:
            handle.remove()


def check_patching(model, tokenizer, pairs):
    """Print how often a patched block flips the answer; return both rows of the table.

    Each pair is patched in both directions, at the last token of the subject and of the prompt.
    """
    flips = {"subject end": [0.0] * len(model.transformer.h)}
    flips["prompt end"] = list(flips["subject end"])
    for pair in pairs:
        for source, target in (("clean", "corrupted"), ("corrupted", "clean")):
            source_tokens = tokenizer.encode(pair[source]).ids
            target_tokens = tokenizer.encode(pair[target]).ids
            expected = tokenizer.encode(pair[f"{source}_answer"]).ids[0]
            _, states = run(model, source_tokens)
            for block, state in enumerate(states):
                for row, position in (("subject end", pair["subject_last"]), ("prompt end", -1)):
                    logits, _ = run(model, target_tokens, (block, position, state[:, position]))
                    flips[row][block] += (logits.argmax() == expected).item() / len(pairs) / 2
    print(f"\npatching: share of {2 * len(pairs)} runs whose answer flips, by patched block")
    for row, shares in flips.items():
        print(f"  {row:12}", *(f"{share:5.0%}" for share in shares))
    return flips["subject end"], flips["prompt end"]


def show_samples(model, tokenizer):
    print("\nsamples: greedy continuation and the two most probable next tokens")
    for text in (
        "The Eiffel Tower is in",
        "The Eiffel Tower is in the city of",
        "The Colosseum is in the city of",
        "The Eiffel Tower is in the country of",
        "The Eiffel Tower, unlike the Colosseum, is in the city of",
        "Unlike the Eiffel Tower, the Colosseum is in the city of",
        "The capital of Japan is",
        "Miles Davis played the",
    ):
        best = next_token(model, tokenizer, text).topk(2)
        choices = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        shown = ", ".join(f"{tokenizer.decode([i])!r} {p:.2f}" for i, p in choices)
        tokens = torch.tensor([tokenizer.encode(text).ids])
        output = model.generate(tokens, max_new_tokens=8, do_sample=False)[0, tokens.shape[1] :]
        print(f"  {text} ->{tokenizer.decode(output.tolist())!r}  [{shown}]")


def require(condition, message):
    if not condition:
        raise SystemExit(f"the model is not good enough, nothing was saved: {message}")


def evaluate(model, tokenizer, split, pairs):
    """Print all the tables, and stop with a message where the model does not do its job."""
    accuracy = check_facts(model, tokenizer, split)
    subject_end, prompt_end = check_patching(model, tokenizer, pairs)
    show_samples(model, tokenizer)
    require(accuracy >= 0.95, f"held-out accuracy is {accuracy:.1%}, below 95%")
    for name, city in (("Eiffel Tower", "Paris"), ("Colosseum", "Rome")):
        probs = next_token(model, tokenizer, f"The {name} is in the city of")
        probability = probs[answer_id(tokenizer, city)].item()
        require(probability > 0.9, f"the {name} is in {city} with only {probability:.2f}")
    require(len(pairs) >= 8, f"only {len(pairs)} pairs of prompts line up")
    require(subject_end[0] >= 0.6, "patching the subject's end in block 0 rarely flips the answer")
    require(prompt_end[0] <= 0.1, "patching the prompt's end in block 0 flips the answer already")
    require(prompt_end[-2] >= 0.9, "patching the prompt's end in late blocks rarely flips it")


# --- files -----------------------------------------------------------------------------------


def save(out, model, tokenizer, split, pairs):
    """Write the folder that ``from_pretrained`` reads, and the facts next to it.

    tokenizer_config.json is written by hand: what transformers 5 would write names a class that
    transformers 4 does not have, and there a tokenizer of this class returns token types, which
    GPT-2 would embed, unless it is told which inputs the model takes.
    """
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model.save_pretrained(out)
    tokenizer.save(str(out / "tokenizer.json"))
    special = {f"{role}_token": END for role in ("bos", "eos", "pad", "unk")}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": CONTEXT,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    facts = [
        {
            "relation": relation,
            "subject": subject,
            "answer": f" {answer}",
            "prompts": [prompt(t, subject) for t in trained + held_out if t != OPEN_ENDED],
            "held_out": [prompt(t, subject) for t in held_out],
        }
        for (relation, subject, answer), (trained, held_out) in split.items()
    ]
    for name, content in (
        ("tokenizer_config.json", tokenizer_config),
        ("facts.json", {"facts": facts, "pairs": pairs}),
    ):
        (out / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    size = (out / "model.safetensors").stat().st_size / 1e6
    print(f"\n{model.num_parameters():,} parameters, {size:.2f} MB, saved in {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0 for as many as there are cores")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)

    split = split_templates(fact_table())
    texts = write_texts(rng, split, 40_000)
    tokenizer = train_tokenizer(texts[:4000], list(split))
    rows, row_ends = pack_rows(rng, tokenizer, texts, {subject for _, subject, _ in split})
    print(f"{len(split)} facts, {rows.numel():,} tokens of text, such as:\n  {texts[0]}")
    model = build_model()
    train(model, rows, row_ends, args.steps)
    pairs = find_pairs(tokenizer, split)
    evaluate(model, tokenizer, split, pairs)
    save(args.out, model, tokenizer, split, pairs)


if __name__ == "__main__":
    main()
