"""ui=web: a page on which texts are watched as they come, coloured by the probability of each token."""

import contextlib
import html
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import; the page works without a network

import gradio as gr
from starlette.applications import Starlette

from slm.chat_template import chat_template
from slm.errors import UserError, printable
from slm.generation.command import Request
from slm.generation.language_model import LanguageModel
from slm.generation.sampling import Sampler
from slm.generation.stream import check_count
from slm.serving.models import MAX_WAITING, world_of
from slm.serving.story import Session, Story

MAX_STORIES, MAX_LENGTH, MAX_CHARACTERS, MAX_SESSIONS = 6, 1000, 4000, 200
GREEDY = "most likely"  # among the temperatures
BESIDE = ["0.3", "0.6", "1", "1.4", GREEDY]
BEGIN, ASK = "The beginning of a text; it may be empty", "Ask the model"
STORIES = """<p class="hint">The text comes here, token by token. Point at a token: what else could the model have
written? Choose another one, and the text goes on from it.</p>
<div class="legend">probability of a token: 1 <span class="scale"></span> 1/64</div>
<div class="stories"></div>"""  # page.js fills it
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]


class Page:
    """The page on models by name; its settings begin as those of the command."""

    def __init__(self, models: Mapping[str, LanguageModel], request: Request):
        self.models, self.request = models, request
        self.worlds = {name: world_of(loaded) for name, loaded in models.items()}
        self.chats = {name: chat_template(loaded.config) for name, loaded in models.items()}

    def app(self) -> Starlette:
        css, js = (
            "".join(files("slm.serving").joinpath(f"{name}.{kind}").read_text("utf-8") for name in ("tokens", "page"))
            for kind in ("css", "js")
        )
        blocks = self.blocks(js)
        blocks.state_session_capacity = MAX_SESSIONS
        blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
        theme = gr.themes.Base(font=FONT, font_mono=["ui-monospace", "monospace"], primary_hue="orange")
        settings = {"footer_links": [], "run_history": False, "ssr_mode": False, "pwa": False, "mcp_server": False}
        return gr.mount_gradio_app(Starlette(), blocks, "/", theme=theme, css=css, show_error=True, **settings)

    def blocks(self, js: str) -> gr.Blocks:
        with gr.Blocks(title="slm", analytics_enabled=False) as blocks:
            session = gr.State(Session())
            gr.HTML(f"<h1>{' and '.join(map(escaped, self.models))}</h1>", elem_id="heading", js_on_load=None)
            with gr.Row(elem_id="columns"):
                with gr.Column(scale=2, min_width=280, elem_id="left"):
                    prompt, buttons = self.ask()
                    settings = self.settings()
                stories = gr.HTML([], html_template=STORIES, js_on_load=js, elem_id="stories", scale=5, min_width=300)
            self.connect(session, prompt, buttons, settings, stories)
        return blocks

    def ask(self) -> tuple[gr.Textbox, dict[str, gr.Button]]:
        with gr.Column(elem_id="ask"):
            prompt = gr.Textbox(
                self.request.prompt,
                label=" / ".join(dict.fromkeys(ASK if chat else BEGIN for chat in self.chats.values())),
                lines=3,
                max_length=MAX_CHARACTERS,
                elem_id="prompt",
            )
            with gr.Row(elem_id="buttons"):
                buttons = {
                    name: gr.Button(name.capitalize(), variant=kind, min_width=80, size="md", elem_id=name)
                    for name, kind in (
                        ("write", "primary"),
                        ("another", "secondary"),
                        ("stop", "stop"),
                        ("continue", "secondary"),
                    )
                }
        return prompt, buttons

    def settings(self) -> list[gr.components.Component]:
        """In the order of the arguments of `stories`."""
        request, names = self.request, list(self.models)
        with gr.Column(elem_id="settings"):
            temperature = gr.Slider(0.05, 2, request.temperature, step=0.05, label="Temperature")
            start = [GREEDY] if request.greedy else []
            beside = gr.CheckboxGroup(BESIDE, value=start, label="Side by side, also at temperature")
            shown = gr.CheckboxGroup(names, value=names, label="Models", visible=len(names) > 1)
            top_k = gr.Slider(0, 200, request.top_k or 0, step=1, label="Top-k (0 is off)")
            top_p = gr.Slider(0.05, 1, request.top_p or 1, step=0.01, label="Top-p (1 is off)")
            length = min(request.max_new_tokens, MAX_LENGTH)
            length = gr.Slider(1, MAX_LENGTH, length, step=1, label="Length (new tokens)", elem_id="length")
            seed = gr.Number(request.seed, precision=0, label="Seed: the same one gives the same text", elem_id="seed")
        return [temperature, beside, shown, top_k, top_p, length, seed]

    def connect(self, session, prompt, buttons, settings, stories):
        """Events. Those that generate share one place in the queue; a stop does not wait in it."""
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        works = {**quiet, "concurrency_id": "models", "trigger_mode": "always_last"}
        at_once = {**quiet, "queue": False}
        length, seed = settings[-2:]
        for start in (buttons["write"].click, prompt.submit):
            stopped = start(stop, session, None, **at_once)
            stopped.then(self.write, [session, prompt, *settings], stories, **works)
        stopped = buttons["another"].click(another, [session, seed], seed, **at_once)
        stopped.then(self.write, [session, prompt, *settings], stories, **works)
        buttons["stop"].click(stop, session, None, **at_once)
        buttons["continue"].click(go_on, [session, length], stories, **works)
        stories.choose(choose, session, None, **at_once).then(branch, [session, length], stories, **works)

    def write(self, session: Session, prompt: str, *settings: Any) -> Iterator[list[dict]]:
        with errors_shown():
            session.stories = self.stories(prompt, *settings)
            yield from session.grow(counted(settings[-2]))

    def stories(self, prompt: str, temperature, beside, shown, top_k, top_p, length, seed) -> list[Story]:
        """A story for each model at each temperature. Raises: UserError: for a value out of range, or too many."""
        if not isinstance(prompt, str) or len(prompt) > MAX_CHARACTERS:
            raise UserError(f"the beginning must have at most {MAX_CHARACTERS} characters")
        if type(seed) is not int or abs(seed) >= 2**63:
            raise UserError("the seed must be a whole number")
        filters = {"top_k": int(top_k) or None, "top_p": top_p if top_p < 1 else None}
        sampler = Sampler(min_p=self.request.min_p, repetition_penalty=self.request.repetition_penalty, **filters)
        samplers = [replace(sampler, temperature=value) for value in temperatures(temperature, beside)]
        samplers += [replace(sampler, greedy=True)] if GREEDY in beside else []
        chosen = [name for name in self.models if name in shown]
        if not 1 <= len(chosen) * len(samplers) <= MAX_STORIES:
            raise UserError(f"choose 1 to {MAX_STORIES} stories: models times temperatures")
        return [
            Story(
                name=name,
                loaded=self.models[name],
                world=self.worlds[name],
                chat=self.chats[name],
                prompt=prompt,
                sampler=sampler,
                seed=seed,
            )
            for sampler in samplers
            for name in chosen
        ]


def temperatures(slider: float, beside: list[str]) -> list[float]:
    """That of the slider, and the others, each once. Raises: UserError: for one that was not on offer."""
    if not all(value in BESIDE for value in beside):
        raise UserError(f"the temperatures beside must be of {', '.join(BESIDE)}")
    return list(dict.fromkeys([slider, *(float(value) for value in beside if value != GREEDY)]))


def counted(length: Any) -> int:
    """Raises: UserError: for a length out of range."""
    check_count("length", length)
    if length > MAX_LENGTH:
        raise UserError(f"length={length} must be at most {MAX_LENGTH}")
    return length


def stop(session: Session):
    session.stopping = True


def another(session: Session, seed: int) -> int:
    session.stopping = True
    return seed + 1


def choose(session: Session, event: gr.EventData):
    """Stops, and notes what is to be done next."""
    session.stopping = True
    session.choice = tuple(getattr(event, name, None) for name in ("story", "place", "token"))


def branch(session: Session, length: int) -> Iterator[list[dict]]:
    """Continues a story with another token at a place."""
    with errors_shown():
        number, place, token = session.choice
        if all(type(value) is int for value in session.choice) and 0 <= number < len(session.stories):
            story = session.stories[number]
            if story.branch(place, token):
                yield from session.grow(counted(length), [story])


def go_on(session: Session, length: int) -> Iterator[list[dict]]:
    with errors_shown():
        yield from session.grow(counted(length))


@contextlib.contextmanager
def errors_shown() -> Iterator[None]:
    """Shows a mistake on the page."""
    try:
        yield
    except UserError as error:
        raise gr.Error(escaped(str(error)), duration=20, print_exception=False) from None


def escaped(text: str) -> str:
    return html.escape(printable(text))
