"""Images with masks: from folders or made up, split, cropped, turned, in batches."""

from minunet.data.dataset import Batches, Dataset, Sample, Split, channel_statistics, split
from minunet.data.folder import load_folder, read_image

__all__ = ["Batches", "Dataset", "Sample", "Split", "channel_statistics", "load_folder", "read_image", "split"]
