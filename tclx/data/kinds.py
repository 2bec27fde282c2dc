"""What kind of file is this? Ordinary ones are opened; by its first bytes a message says what another was."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

HEAD_BYTES = 4096
"""As much of a file's beginning as `kind_of_file` wants to see."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".mpo")
"""What image files are called, in small letters; in a folder only such are taken for images."""

_KINDS: tuple[tuple[bytes, str], ...] = (
    (rb"\xff\xd8\xff", "a JPEG image"),
    (rb"\x89PNG\r\n\x1a\n", "a PNG image"),
    (rb"RIFF.{4}WEBP", "a WebP image"),
    (rb"GIF8[79]a", "a GIF image"),
    (rb"BM.{4}\0\0\0\0", "a BMP image"),
    (rb"(II\*\0|MM\0\*|II\+\0|MM\0\+)", "a TIFF image"),
    (rb".{4}ftypavi[fs]", "an AVIF image"),
    (rb".{4}ftyp(hei[cxms]|hev[cx]|mif1|msf1)", "a HEIF or HEIC image"),
    (rb".{4}ftyp", "a film (MP4 or QuickTime)"),
    (rb"(\xff\x4f\xff\x51|\0\0\0\x0cjP {2}\r\n)", "a JPEG 2000 image"),
    (rb"(\xff\x0a|\0\0\0\x0cJXL \r\n)", "a JPEG XL image"),
    (rb"(%!PS|\xc5\xd0\xd3\xc6)", "PostScript (EPS)"),
    (rb"8BPS", "a Photoshop file (PSD)"),
    (rb"%PDF", "a PDF"),
    (rb"\0\0[\x01\x02]\0[^\0]\0", "a Windows icon (ICO or CUR)"),
    (rb"icns", "a macOS icon (ICNS)"),
    (rb"P[1-7Ff]\s", "a PPM, PGM, PBM or PFM image"),
    (rb"qoif", "a QOI image"),
    (rb"#\?(RADIANCE|RGBE)", "a Radiance HDR image"),
    (rb"v/1\x01", "an OpenEXR image"),
    (rb"DDS ", "a DDS texture"),
    (rb"SIMPLE  =", "a FITS image"),
    (rb".{128}DICM", "a DICOM file"),
    (rb"\0\x05\x16[\0\x07]", "a macOS side file (AppleDouble, `._name`), which holds no content of its own"),
    (rb"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched (git lfs pull)"),
    (rb"\x1f\x8b", "a gzip archive"),
    (rb"PK\x03\x04", "a zip archive (or an Excel, NumPy or PyTorch file)"),
    (rb"BZh", "a bzip2 archive"),
    (rb"\xfd7zXZ\0", "an xz archive"),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (rb"Rar!", "a RAR archive"),
    (rb".{257}ustar", "a tar archive"),
    (rb"PAR1", "a Parquet table"),
    (rb"(ARROW1|\xff\xff\xff\xff[^\0]{1,2}\0)", "an Arrow table"),
    (rb"\x89HDF", "an HDF5 file"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"SQLite format 3", "an SQLite database"),
    (rb"\x80[\x02-\x05]", "a Python pickle"),
    (rb"\x7fELF", "a program"),
    (rb"\s*(<!doctype html|<html|<head|<body)", "a web page (HTML); was it downloaded through a page that asks to sign in?"),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", "an SVG drawing"),
    (rb"\s*<\?xml", "XML"),
)
_PATTERNS = [(re.compile(rb"(?:\xef\xbb\xbf)?" + pattern, re.DOTALL | re.IGNORECASE), name) for pattern, name in _KINDS]


_NO_FILE = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def open_ordinary(path: Path) -> BinaryIO:
    """Open a file that has an end: not `/dev/zero`, and not a pipe, which would wait for somebody to write.

    Raises:
        OSError: it is no ordinary file, or the system refuses; `strerror` says which.
        ValueError: no file can have that path (a NUL, half a character).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"it is {_NO_FILE.get(stat.S_IFMT(mode), 'a device')}, not a file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def kind_of_file(head: bytes) -> str | None:
    """The kind in words with its article, None for anything unknown (plain text among it).

    Args:
        head: the file's first bytes, `HEAD_BYTES` of them or the whole file.
    """
    for pattern, name in _PATTERNS:
        if pattern.match(head[:HEAD_BYTES]):
            return name
    return None


def image_files(folder: Path) -> list[str]:
    """Paths from a folder, with `/`, of the files in it and below whose names end as images do; sorted.

    Hidden files and folders are left out, and macOS's side files. Links to folders are followed, to each folder once.

    Raises:
        OSError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    names: list[str] = []
    seen: set[tuple[int, int]] = set()
    for where, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        facts = Path(where).stat()
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        inside = Path(where).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        names += (f"{prefix}{name}" for name in files if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES))
    return sorted(names)
