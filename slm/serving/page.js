// Draws the stories of ui=web, with tokens.js before it. `element`, `props`, `trigger` and `watch` are given by Gradio.
const legend = element.querySelector(".legend"), hint = element.querySelector(".hint");
const stories = element.querySelector(".stories");

function column(story, number) {
  const text = make("p", "text colours", make("span", "prompt", story.prompt));
  let position = 0;
  story.tokens.forEach(([content, share, chosen], place) => {
    if (content === "") return; // a part of a character
    const [space, token] = tokenParts(content, share);
    position += content?.length ?? 0;
    token.classList.toggle("chosen", chosen);
    token.classList.toggle("wrong", story.error !== null && position > story.error && content !== null);
    Object.assign(token.dataset, { story: number, place });
    text.append(space, token);
  });
  const verdict = story.verdict ? [make("p", story.good ? "verdict good" : "verdict bad", story.verdict)] : [];
  return make("article", "story", make("h3", "", story.title), text, ...verdict, make("p", "facts", story.facts));
}

function draw() {
  const shown = props.value || [], open = alternatives.opened?.dataset;
  legend.hidden = !shown.length;
  hint.hidden = shown.length;
  stories.replaceChildren(...shown.map(column));
  if (open) alternatives.mark(stories.querySelector(`[data-story="${open.story}"][data-place="${open.place}"]`));
}

const alternatives = new Alternatives(stories, element, ({ dataset }) => {
  const [story, place] = [Number(dataset.story), Number(dataset.place)];
  const [content, share, , id, others] = props.value[story].tokens[place];
  const all = others.some(([other]) => other === id) ? others : [...others, [id, content ?? "", share]];
  const options = all.map(([token, text, share]) => {
    return { text, share, own: token === id, choose: () => trigger("choose", { story, place, token }) };
  });
  return { line: `${percent(share)}. Go on with another:`, options };
});
watch("value", draw);
draw();
