"""A U-Net for your own images, from Python: two folders in; a trained net, predictions and a report out.

    python examples/07_unet_on_your_images.py OUT IMAGES MASKS      # masks are paired with the images by their names
    python examples/07_unet_on_your_images.py OUT                   # with made-up cells, half a minute on two cores

`minunet train` and `minunet predict` do the same with many options; here is what happens in them. OUT gets run/ (what
training leaves), found/ (a mask for each test image) and report.png (the worst, the middle and the best test image).
With the made-up cells it prints, as measured:

    80 images with 1 channel(s), classes: class
    48 to learn from, 16 to validate, 16 to test
    epoch 1: loss 1.26, validation IoU 0.50
    epoch 15: loss 0.26, validation IoU 0.90
    test: IoU 0.88, Dice 0.93, precision 0.92, recall 0.95
    among the worst: scene20, IoU 0.83
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from minunet.data import load_folder
from minunet.data.scenes import cell_scenes
from minunet.errors import UserError
from minunet.inference import mask_picture
from minunet.training import Run, RunConfig, evaluate
from minunet.training.report import validation_sheet


def figure(value):
    """A share with two digits; None is that of a class which nothing holds."""
    return "none" if value is None else f"{value:.2f}"


arguments = [a for a in sys.argv[1:] if a != "--quick"]
quick = "--quick" in sys.argv
if len(arguments) not in (1, 3) or arguments[0].startswith("-"):
    sys.exit(__doc__)
out = Path(arguments[0])

# 1. Two folders. An image and its mask have the same name; a mask is black (0) where there is nothing.
if len(arguments) == 3:
    images, masks = map(Path, arguments[1:])
else:
    images, masks = out / "images", out / "masks"
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(exist_ok=True)
    scenes = cell_scenes(np.random.default_rng(0), 10 if quick else 80, size=(128, 128))
    for i, (image, mask) in enumerate(zip(*scenes)):
        Image.fromarray(np.uint8(255 * image[..., 0])).save(images / f"scene{i:02}.png")
        Image.fromarray(255 * mask).save(masks / f"scene{i:02}.png")

# 2. Every file is opened and looked at before anything is learned; what is wrong with one is said in a sentence.
try:
    dataset = load_folder(images, masks)
except UserError as error:
    sys.exit(f"{error}")
print(f"{len(dataset.samples)} images with {dataset.channels} channel(s), classes: {', '.join(dataset.class_names)}")

# 3. Training: random crops, turned and flipped. The images for validation choose the best epoch, those for the test
#    stay unseen to the end.
config = RunConfig(base=8, depth=3, crop=(128, 128), batch=8, epochs=2 if quick else 15, lr=1e-2)
run = Run(dataset, out / "run", config)
print(f"{len(run.split.train)} to learn from, {len(run.split.validation)} to validate, {len(run.split.test)} to test")
for result in run.epochs():
    print(f"epoch {result.epoch}: loss {result.loss:.2f}, validation IoU {figure(result.iou)}")
run.finish()                                    # the best epoch's weights are back in run.checkpoint

# 4. Prediction, with what was learned. evaluate() predicts every image whole, compares, and hands on what it found.
found = {}
report = evaluate(run.checkpoint, run.split.test, on_image=lambda sample, ids: found.update({sample.name: ids}))
(out / "found").mkdir(exist_ok=True)
for name, ids in found.items():
    path = (out / "found" / name).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    mask_picture(ids, "binary" if dataset.classes == 1 else "ids").save(path)

# 5. The report: a figure for all, one for each image, and a look at the worst. A mean hides what a look does not: often
#    the worst image has a wrong mask.
all_pixels = report.over_pixels
print(f"test: IoU {figure(all_pixels['iou'])}, Dice {figure(all_pixels['dice'])}, "
      f"precision {figure(all_pixels['precision'])}, recall {figure(all_pixels['recall'])}")
ranked = sorted(report.images, key=lambda image: image["iou"] or 0)
for image in ranked[:3]:
    print(f"among the worst: {image['name']}, IoU {figure(image['iou'])}")
samples = {sample.name: sample for sample in run.split.test}
shown = [ranked[i]["name"] for i in (0, len(ranked) // 2, -1)]
validation_sheet([samples[n] for n in shown], [found[n] for n in shown], dataset.class_names).save(out / "report.png")
print(f"look at {out / 'report.png'}: the worst, the middle and the best")
