"""Sequence VAE (Bowman et al. 2016): sentences of a small grammar, written word by word.

    python examples/15_sentences.py        prints sentences

Nothing tells the model that dogs see and a dog sees.  A sample is drawn step by step, and counted
as right if the grammar has it; then two sentences are connected by a line in latent space.
"""

import itertools

import numpy as np

import tinyvae as tv

NOUNS, VERBS, ADJECTIVES = ("dog", "cat", "bird"), ("see", "hear", "like"), ("small", "old", "")


def phrases(number):
    """the small dog, a dog ..; the small dogs, some dogs .."""
    determiners, ending = (("the", "a"), "") if number == 1 else (("the", "some"), "s")
    for words in itertools.product(determiners, ADJECTIVES, NOUNS):
        yield " ".join(word for word in words if word) + ending


SENTENCES = [
    f"{subject} {verb}{'s' if number == 1 else ''}{end}"
    for number in (1, 2)
    for subject, verb in itertools.product(phrases(number), VERBS)
    for end in ("", *(f" {thing}" for other in (1, 2) for thing in phrases(other)))
]
WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
STEPS = max(len(sentence.split()) for sentence in SENTENCES)


def numbers(sentences):
    """Rows of word numbers, -1 behind the end."""
    rows = np.full((len(sentences), STEPS), -1)
    for row, sentence in zip(rows, sentences, strict=True):
        words = sentence.split()
        row[: len(words)] = [WORDS.index(word) for word in words]
    return rows


def text(row):
    return " ".join(WORDS[i] for i in row if i >= 0)


print(f"{len(SENTENCES)} sentences of up to {STEPS} of {len(WORDS)} words")
rng = np.random.default_rng(0)
x, new = (numbers([SENTENCES[i] for i in rng.integers(0, len(SENTENCES), n)]) for n in (2000, 200))
for decoder in ("gru", "transformer"):
    vae = tv.VAE(
        8, model=f"sequence:{decoder}:dropout=0.3", likelihood=f"tokens:{len(WORDS)}",
        hidden=(64,), epochs=20, batch_size=32, learning_rate=3e-3, kl_schedule="linear:0:1:10",
        random_state=0,
    )  # fmt: skip
    vae.fit(x)
    samples = [text(row) for row in vae.sample(500, 0, mean=False)]
    right = np.mean([sample in SENTENCES for sample in samples])
    result = vae.evaluate(new)
    print(f"\n{decoder}: {right:.0%} of the samples are right; KL {result.kl:.1f} nats, "
          f"log p(x) {vae.log_likelihood(new, 50).mean():.2f}, "
          f"at best {-np.log(len(SENTENCES)):.2f}")  # fmt: skip
    print(*(f"    {sample}" for sample in samples[:6]), sep="\n")
print("\nfrom one sentence to another:")
for row in vae.interpolate(*numbers(["the old dog sees", "some cats like a small bird"]), steps=6):
    print(f"    {text(row)}")
