"""Opens picture files by Pillow."""

import re
import warnings
from contextlib import contextmanager

from minifit import UserError
from minifit.files import opened

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
DEEP = re.compile(r";16[BLN]\b|^\('\w+', 65535\)$")  # how Pillow reads 16 bits per channel: PNG and TIFF, or PPM
MOST_PIXELS = 10**8


@contextmanager
def picture(path):
    """Opens a picture, upright, as a Pillow image whose colours are no palette.

    UserError unless the file holds one whole picture of 8 bits per channel. A compressed TIFF is refused, because its
    library writes to stderr.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        file = opened(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; wanted a picture") from None
    try:
        with file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each picture gets a line or none
            with Image.open(file, formats=FORMATS) as image:
                _check(path, image)
                image = ImageOps.exif_transpose(image)
                clear = image.mode in ("1", "P") and "transparency" not in image.info
                modes = {"1": "L", "P": "RGB" if clear else "RGBA"}
                yield image.convert(modes[image.mode]) if image.mode in modes else image
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{path}: found no picture; wanted {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        message = " ".join(str(error).split())
        raise UserError(f"{path}: found a damaged picture ({message}); wanted {', '.join(FORMATS)}") from None


def _check(path, image):
    if image.width * image.height > MOST_PIXELS:
        raise UserError(f"{path}: found {image.width}x{image.height} pixels; wanted at most {MOST_PIXELS:,}")
    if any(DEEP.search(str(tile[-1])) for tile in image.tile):
        raise UserError(f"{path}: found 16 bits per channel; wanted 8")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG, whose other pictures are previews
        raise UserError(f"{path}: found {frames} pictures in it; wanted one")
    if image.format == "TIFF" and image.info.get("compression", "raw") != "raw":
        raise UserError(f"{path}: found a compressed TIFF; wanted an uncompressed one")
