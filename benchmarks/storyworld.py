"""Speed of generating and parsing storyworld stories, and statistics of each level, on one thread.

    python benchmarks/storyworld.py [--stories 20000] [--parsed 300]

Prints a row per level: size, entropy and vocabulary of the stories, stories generated per second (as in a run's
corpus), and milliseconds per parse. Every parsed story must have one derivation with its probability.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from slm.corpora.storyworld.corpus import Storyworld  # noqa: E402
from slm.corpora.storyworld.parser import parse  # noqa: E402
from slm.corpora.storyworld.world import LEVELS  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=int, default=20000, help="per level")
    parser.add_argument("--parsed", type=int, default=300, help="per level")
    arguments = parser.parse_args()
    print("| level | plots | words | bytes | bits | bits per byte | vocabulary | stories/s | ms per parse |")
    print("|---|---|---|---|---|---|---|---|---|")
    for level in LEVELS:
        corpus = Storyworld(level=level, stories=arguments.stories, validation_stories=1, seed=0)
        start = time.perf_counter()
        stories = [corpus.story("train", index) for index in range(arguments.stories)]
        rate = arguments.stories / (time.perf_counter() - start)
        start = time.perf_counter()
        for story in stories[: arguments.parsed]:
            [found] = parse(corpus.seen, story.text).stories
            assert found.choices == story.choices, story.text
            assert abs(found.bits - story.bits) < 1e-9, story.text
        milliseconds = 1000 * (time.perf_counter() - start) / arguments.parsed
        texts = [story.text for story in stories]
        size, bits = mean(map(len, texts)), mean(story.bits for story in stories)
        vocabulary = {word.strip('.,!?":;') for text in texts for word in text.split()}
        print(
            f"| {level} | {len(corpus.seen.plots)} | {mean(len(text.split()) for text in texts):.0f} | {size:.0f} "
            f"| {bits:.1f} | {bits / size:.4f} | {len(vocabulary):,} | {rate:,.0f} | {milliseconds:.1f} |"
        )


if __name__ == "__main__":
    main()
