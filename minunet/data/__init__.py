"""Images with masks: from folders or made up, inspected, split, cropped, turned, in batches."""

from minunet.data.batches import Batches, prefetch
from minunet.data.dataset import Dataset, Sample, Split, channel_statistics, split
from minunet.data.files import image_files, name_below, read_image, unit
from minunet.data.folder import dataset_of, load_folder
from minunet.data.masks import IGNORE, MaskCode, MaskOptions
from minunet.data.survey import Survey, survey

__all__ = ["IGNORE", "Batches", "Dataset", "MaskCode", "MaskOptions", "Sample", "Split", "Survey",
           "channel_statistics", "dataset_of", "image_files", "load_folder", "name_below", "prefetch", "read_image",
           "split", "survey", "unit"]
