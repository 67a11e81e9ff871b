"""A conditional VAE of the digits: ask for a class, and keep the handwriting.

    python examples/06_conditional.py        writes conditional.png

Encoder and decoder are told the label (Sohn, Lee and Yan 2015), so that z need not hold it: the
same z, decoded with ten labels, gives ten digits in one hand.  A linear classifier trained on real
digits says how many samples are of the class asked for.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression

import tinyvae as tv
from tinyvae import plots

digits = tv.data.load("digits")
classifier = LogisticRegression(max_iter=1000)
classifier.fit(digits.train.reshape(-1, 64), digits.train_labels)
options = {"hidden": (128,), "binarize": "dynamic", "learning_rate": 3e-3, "epochs": 60}
asked = np.arange(1000) % 10

for model in ("vae", "cvae", "cvae:learned_prior=true"):
    vae = tv.VAE(8, model=model, random_state=0, **options)
    vae.fit(digits.train, digits.train_labels)
    bound = vae.score(digits.test, digits.test_labels)
    line = f"{model:24s} test ELBO {bound:.2f} nats"
    if vae.uses_labels:
        samples = vae.sample(len(asked), 0, y=asked)
        agree = classifier.score(samples.reshape(-1, 64), asked)
        line += f", {agree:.1%} of the samples are of the class asked for"
    print(line)

rows, labels = digits.test[:8], digits.test_labels[:8]
cvae = tv.VAE(8, model="cvae", random_state=0, **options).fit(digits.train, digits.train_labels)
codes = cvae.transform(rows, labels)
hands = cvae.decode(np.repeat(codes, 10, axis=0), y=np.tile(np.arange(10), len(codes)))
sheet = np.concatenate([rows[:, None], hands.reshape(-1, 10, *rows.shape[1:])], axis=1)
names = ["real", *map(str, range(10))]
plots.image_grid(sheet.reshape(-1, 8, 8, 1), "conditional.png", columns=11, column_labels=names)
print("wrote conditional.png: each line is one hand, at first the digit that it was taken from")
