"""What extreme pictures cost to decode: `python -m benchmarks.decode_costs` prints the table in docs/security.md.

Each is decoded by `model.images.read` in a fresh process, without limits.
"""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

from PIL import Image

from benchmarks import ROOT
from benchmarks.pictures import repeat_scan

SIDE = 7000  # 49 megapixels, just within CAPTION_MAX_PIXELS
READ = """
import resource, sys
from model import images

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

data = sys.stdin.buffer.read()
images.limit_pixels(50_000_000)
before, memory = resource.getrusage(resource.RUSAGE_SELF), peak()
images.read(data, 50_000_000, 224)
after = resource.getrusage(resource.RUSAGE_SELF)
seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(f"{seconds:.1f} | {(peak() - memory) / 1024:.0f}")
"""


def encode(mode: str, format: str, **options: Any) -> bytes:
    """An empty picture of SIDE x SIDE."""
    buffer = io.BytesIO()
    Image.new(mode, (SIDE, SIDE)).save(buffer, format, **options)
    return buffer.getvalue()


def main() -> None:
    """Print the table."""
    avif, progressive = encode("RGB", "AVIF", speed=10), encode("RGB", "JPEG", progressive=True)
    at = avif.index(b"ispe") + 8
    cases = {
        "JPEG": encode("RGB", "JPEG"),
        "JPEG, progressive": progressive,
        "JPEG, progressive, 50 scans more": repeat_scan(progressive, 50),
        "JPEG, progressive, 400 scans more": repeat_scan(progressive, 400),
        "PNG": encode("RGB", "PNG"),
        "PNG with alpha": encode("RGBA", "PNG"),
        "GIF": encode("L", "GIF"),
        "WebP, lossless, with alpha": encode("RGBA", "WEBP", lossless=True, quality=0, method=0),
        "TIFF, floats": encode("F", "TIFF", compression="tiff_lzw"),
        "AVIF": avif,
        "AVIF that says it has 1 x 1 pixels": avif[:at] + b"\0\0\0\1\0\0\0\1" + avif[at + 8 :],
    }
    print(f"| {SIDE} x {SIDE} pixels | file, bytes | CPU, s | memory, MB |")
    print("|---|---|---|---|")
    for name, data in cases.items():
        done = subprocess.run([sys.executable, "-c", READ], input=data, cwd=ROOT, capture_output=True, check=True)
        print(f"| {name} | {len(data):,} | {done.stdout.decode().strip()} |", flush=True)


if __name__ == "__main__":
    main()
