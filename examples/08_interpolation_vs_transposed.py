"""Which way up: transposed convolution or interpolation? The same U-Net with each, from several seeds, measured.

    python examples/08_interpolation_vs_transposed.py [--quick] [ways_up.png]       # about two minutes on two cores

It prints, as measured with four seeds (in brackets the lowest and the highest):

    3x3 transposed: 134,473 parameters
        checkerboard 0.164 (0.062 to 0.245) before training, 0.008 (0.002 to 0.014) after
        IoU 0.821 (0.816 to 0.826) on unseen scenes
    2x2 transposed: 121,033 parameters
        checkerboard 0.319 (0.220 to 0.418) before training, 0.007 (0.005 to 0.010) after
        IoU 0.827 (0.819 to 0.835) on unseen scenes
    bilinear: 112,969 parameters
        checkerboard 0.020 (0.013 to 0.027) before training, 0.003 (0.002 to 0.003) after
        IoU 0.835 (0.821 to 0.845) on unseen scenes
    Better than the others with every seed: none

So both transposed convolutions begin with a checkerboard, 2x2 too: it is even on average, but each of its kernels is a
pattern of its own (lowest row of 04_checkerboard.py's picture). Training removes nearly all of it. Interpolation begins
without, and needs fewer weights. For the cells that are found it makes no difference that four seeds could show.

The picture shows one scene's logits before and after training; look into the cells of "3x3 transposed, after".
"""

import sys

import numpy as np
from matplotlib.figure import Figure

from minunet import Tensor, UNet, functional, nn, optim
from minunet.data.scenes import cell_scenes
from minunet.training import Confusion

quick = "--quick" in sys.argv
pictures = [a for a in sys.argv[1:] if a != "--quick"]
if len(pictures) > 1 or any(a.startswith("-") for a in pictures):
    sys.exit(__doc__)
scenes, steps, seeds = (32, 6, 2) if quick else (200, 100, 4)

WAYS = ("3x3 transposed", "2x2 transposed", "bilinear")


def make_net(way, rng):
    """A U-Net that differs only in how it doubles the size."""
    net = UNet(in_channels=1, classes=1, base=8, depth=3, up="bilinear" if way == "bilinear" else "transpose",
               output="linear", rng=rng)
    if way == "3x3 transposed":         # not among UNet's own choices
        for level in net.up:
            channels_out, channels_in = level.up.weight.shape[2:]
            level.up = nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, padding=1, output_padding=1, rng=rng)
    return net


def train(net, images, masks, rng):
    """A few steps of Adam on random batches, the learning rate falling to 0."""
    optimizer = optim.Adam(net.parameters(), lr=5e-3)
    for step in range(steps):
        batch = rng.integers(0, len(images), 8)
        optimizer.lr = optim.cosine(step, steps, 5e-3)
        loss = functional.bce_with_logits(net(Tensor(images[batch])), masks[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def checkerboard(logits):
    """Of each four neighbours, the means over an image: how much they differ, relative to how much all numbers do.

    Far from 0 there is a pattern that goes on through the whole image, whatever the image shows.
    """
    means = [logits[:, top::2, left::2].mean((1, 2, 3)) for top in (0, 1) for left in (0, 1)]       # 4 of (N,)
    return np.std(means, axis=0).mean() / logits.std()


def iou(logits, masks):
    """Of the cells, over all pixels."""
    counts = Confusion(2)
    counts.add(masks, (logits > 0).astype(np.uint8))
    return counts.iou(1)


def spread(values):
    """The mean, and the range in brackets."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


# 1. Scenes to learn from, and scenes that no net sees. Their masks get an axis for the one class: (N, H, W, 1).
images, masks = cell_scenes(np.random.default_rng(0), scenes, (64, 64))
unseen, truth = cell_scenes(np.random.default_rng(1), scenes // 4, (64, 64))
mean, deviation = images.mean(), images.std()
images, unseen = (images - mean) / deviation, (unseen - mean) / deviation
masks, truth = masks[..., None], truth[..., None]

# 2. Each way from each seed. One run of each would tell nothing: the seed alone moves the IoU by one or two hundredths.
shown = {}                                                  # logits of the first seed's nets, before and after
ious = {}
for way in WAYS:
    before, after, ious[way] = [], [], []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        net = make_net(way, rng)
        first = net.predict(unseen)
        train(net, images, masks, rng)
        last = net.predict(unseen)
        before.append(checkerboard(first))
        after.append(checkerboard(last))
        ious[way].append(iou(last, truth))
        shown.setdefault(way, (first[0], last[0]))
    print(f"{way}: {sum(p.data.size for p in net.parameters()):,} parameters")
    print(f"    checkerboard {spread(before)} before training, {spread(after)} after")
    print(f"    IoU {spread(ious[way])} on unseen scenes")

# 3. Is one better? Only if its worst seed beats the best of the others.
apart = [a for a in WAYS if all(min(ious[a]) > max(ious[b]) for b in WAYS if b != a)]
print("Better than the others with every seed:", apart[0] if apart else "none")


def draw(path):
    """The first unseen scene: image and truth, and the logits of each way before and after training."""
    figure = Figure(figsize=(9.2, 5), dpi=100, layout="constrained")
    upper, lower = figure.subplots(2, 4)
    panels = {"image": unseen[0], **{f"{way}, before": shown[way][0] for way in WAYS},
              "truth": truth[0], **{f"{way}, after": shown[way][1] for way in WAYS}}
    for axes, (title, picture) in zip((*upper, *lower), panels.items()):
        axes.imshow(picture[8:48, 8:48, 0], cmap="gray")
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
    figure.savefig(path)


if pictures:
    draw(pictures[0])
