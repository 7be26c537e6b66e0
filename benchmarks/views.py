"""Images a second of each view, a batch at a time, against OpenCV and scikit-image image by image, in one run.

    python benchmarks/views.py [--rounds 5] [--sizes 64 128 224] [--views weber_dog xdog] [--threads 2]

Everybody gets the same decoded images, uint8 in and uint8 drawings out, the same parameters and as many threads: so
many batches, or images, are drawn at a time, each by one thread. Where a library has the operator, it is
called as usual; where it has none (weber_dog, xdog, pencil), the formula is written with its Gaussian blur. There is no
maintained library for coherent_lines. Rounds go in turns; the table gives medians, and the median over the rounds of
how many times as fast evenlens was. "Differs" is the mean difference of the drawings in levels of 255.
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import skimage.color
import skimage.feature
import skimage.filters
import torch
from PIL import Image, ImageDraw, ImageFilter

from evenlens import engine, views
from evenlens.data.drawing import CORE_PIXELS

NAMES = ("grey", "weber_dog", "xdog", "pencil", "sobel", "canny", "coherent_lines")
SECONDS = 0.4  # of a measurement, at least
PIXELS = 1 << 22  # of all images that are drawn


def pictures(num, size):
    """Draw soft ovals with edges and a little noise."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(num):
        image = Image.fromarray(generator.integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize((size, size), 3)
        draw = ImageDraw.Draw(image)
        for _ in range(8):
            left, top = generator.integers(0, 3 * size // 4, 2).tolist()
            wide, high = generator.integers(size // 16, size // 2, 2).tolist()
            colour = tuple(generator.integers(0, 255, 3).tolist())
            draw.ellipse((left, top, left + wide, top + high), fill=colour)
        pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(size / 128)), np.int16)
        made.append((pixels + generator.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8))
    return np.stack(made)


class OpenCV:
    """The views as one writes them with OpenCV."""

    def grey(self, image):
        """Weigh red, green and blue."""
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)

    def luma(self, image):
        """Give the luma as numbers in [0, 1]."""
        return self.grey(image).astype(np.float32) / 255

    def blur(self, image, sigma):
        """Blur with a Gaussian that is cut off at four standard deviations."""
        reach = int(4 * sigma + 0.5)
        return cv2.GaussianBlur(image, (2 * reach + 1, 2 * reach + 1), sigma)

    def sobel(self, image, view):
        """Draw slopes."""
        luma = self.luma(image)
        length = cv2.magnitude(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1))
        return 1 - length / (view.scale * length.mean())

    def canny(self, image, view, sigma):
        """Draw lines."""
        smooth = self.blur(self.grey(image), sigma)
        return 255 - cv2.Canny(smooth, 255 * view.low, 255 * view.high, L2gradient=True)


class ScikitImage(OpenCV):
    """The views as one writes them with scikit-image."""

    def grey(self, image):
        """Weigh red, green and blue."""
        return in_bytes(self.luma(image))

    def luma(self, image):
        """Give the luma as numbers in [0, 1]."""
        return skimage.color.rgb2gray(image)

    def blur(self, image, sigma):
        """Blur with a Gaussian that is cut off at four standard deviations."""
        return skimage.filters.gaussian(image, sigma, mode="mirror")

    def sobel(self, image, view):
        """Draw slopes."""
        length = skimage.filters.sobel(self.luma(image))
        return 1 - length / (view.scale * length.mean())

    def canny(self, image, view, sigma):
        """Draw lines."""
        lines = skimage.feature.canny(self.luma(image), sigma, view.low, view.high, mode="mirror")
        return np.where(lines, np.uint8(0), np.uint8(255))


def in_bytes(image):
    return np.round(255 * image.clip(0, 1)).astype(np.uint8)


def soft_threshold(value, view):
    return 1 + np.tanh(view.phi * np.minimum(value - view.epsilon, 0))


def draw_one(library, name, view, image):
    """Draw one image (H, W, 3) with a library; give (H, W) uint8."""
    if name == "grey":
        return library.grey(image)
    if name == "sobel":
        return in_bytes(library.sobel(image, view))
    size = min(image.shape[:2])
    sigma = max(view.sigma * size / 256, view.smallest_sigma)
    if name == "canny":
        return library.canny(image, view, sigma)
    luma = library.luma(image)
    inner = library.blur(luma, sigma)
    if name == "pencil":
        return in_bytes((luma + view.delta) / (inner + view.delta))
    outer = library.blur(luma, view.k * sigma)
    if name == "xdog":
        return in_bytes(soft_threshold((1 + view.p) * inner - view.p * outer, view))
    difference = inner - outer
    nearby = library.blur(np.abs(difference), view.window * size)
    return in_bytes(soft_threshold(difference / (view.luminance * outer + view.contrast * nearby + view.delta), view))


@torch.inference_mode()
def draw_batch(view, pixels, device):
    """Draw images (B, H, W, 3) uint8 with evenlens; give (B, H, W) uint8."""
    drawing = view.draw(pixels.to(device).permute(0, 3, 1, 2).float().div_(255))
    return drawing[:, 0].mul(255).round_().to(torch.uint8).cpu().numpy()


def draw_batches(view, pixels, device, pool):
    parts = torch.from_numpy(pixels).split(max(1, CORE_PIXELS // pixels[0, :, :, 0].size))
    return np.concatenate(list(pool.map(lambda part: draw_batch(view, part, device), parts)))


def measure(name, size, rounds, pool, device):
    view = views.build(name, views.settle(name, {})).to(device)
    pixels = np.tile(pictures(64, size), (max(1, PIXELS // (64 * size**2)), 1, 1, 1))
    ways = {"evenlens": lambda pixels: draw_batches(view, pixels, device, pool)}
    if name != "coherent_lines":
        for title, library in (("OpenCV", OpenCV()), ("scikit-image", ScikitImage())):
            ways[title] = lambda pixels, library=library: np.stack(
                list(pool.map(lambda image: draw_one(library, name, view, image), pixels, chunksize=8))
            )
    drawn = ways["evenlens"](pixels)
    differs = {way: float(np.abs(draw(pixels).astype(np.int16) - drawn).mean()) for way, draw in ways.items()}
    speeds = {way: [] for way in ways}
    for _ in range(rounds):
        for way, draw in ways.items():
            calls, began = 0, time.perf_counter()
            while (passed := time.perf_counter() - began) < SECONDS:
                draw(pixels)
                calls += 1
            speeds[way].append(calls * len(pixels) / passed)
    return speeds, differs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224])
    parser.add_argument("--views", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    device = engine.start(1)
    cv2.setNumThreads(1)  # threads that share one small image mostly wait for each other
    print(f"Images a second, {given.threads} threads, {device.type}; medians of {given.rounds} rounds in turns\n")
    print("| view | px | evenlens | OpenCV | scikit-image | times OpenCV | times scikit-image | differs (OpenCV) |")
    print("|---|---|---|---|---|---|---|---|")
    with ThreadPoolExecutor(given.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for name in given.views:
            for size in given.sizes:
                speeds, differs = measure(name, size, given.rounds, pool, device)
                cells = [f"{statistics.median(speeds[way]):,.0f}" if way in speeds else "" for way in
                         ("evenlens", "OpenCV", "scikit-image")]  # fmt: skip
                for way in ("OpenCV", "scikit-image"):
                    pairs = zip(speeds["evenlens"], speeds.get(way, ()), strict=False)
                    ratios = [ours / theirs for ours, theirs in pairs]
                    cells.append(f"{statistics.median(ratios):.1f}" if ratios else "")
                cells.append(f"{differs['OpenCV']:.1f}" if "OpenCV" in differs else "")
                print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
