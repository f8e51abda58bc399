"""How fast stories are made and read back, and the figures of each level, in one process on one thread.

    python benchmarks/storyworld.py [--stories 20000] [--read 300]

Prints a row per level: stories made per second (as a run's corpus makes them), their size and entropy, the vocabulary,
and milliseconds to read one back. Every story that is read must have one derivation, of the probability it was drawn
with.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from slm.corpora.storyworld.corpus import Storyworld  # noqa: E402
from slm.corpora.storyworld.telling import read  # noqa: E402
from slm.corpora.storyworld.world import LEVELS  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=20000, help="made per level")
    parser.add_argument("--read", type=int, default=300, help="of them read back")
    arguments = parser.parse_args()
    print("| level | plots | words | bytes | bits | bits per byte | vocabulary | stories/s | ms to read |")
    print("|---|---|---|---|---|---|---|---|---|")
    for level in LEVELS:
        corpus = Storyworld(level=level, stories=arguments.stories, validation_stories=1, seed=0)
        start = time.perf_counter()
        stories = [corpus.story("train", index) for index in range(arguments.stories)]
        rate = arguments.stories / (time.perf_counter() - start)
        start = time.perf_counter()
        for story in stories[: arguments.read]:
            reading = read(corpus.seen, story.text)
            assert [found.choices for found in reading.stories] == [story.choices], story.text
            assert abs(reading.bits - story.bits) < 1e-9, story.text
        milliseconds = 1000 * (time.perf_counter() - start) / arguments.read
        texts = [story.text for story in stories]
        size, bits = mean(map(len, texts)), mean(story.bits for story in stories)
        vocabulary = {word.strip('.,!?":;') for text in texts for word in text.split()}
        print(
            f"| {level} | {len(corpus.seen.plots)} | {mean(len(text.split()) for text in texts):.0f} | {size:.0f} "
            f"| {bits:.1f} | {bits / size:.4f} | {len(vocabulary):,} | {rate:,.0f} | {milliseconds:.1f} |"
        )


if __name__ == "__main__":
    main()
