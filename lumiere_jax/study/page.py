"""The page of a study: two clips in step, two questions, and nothing that tells which method is where."""

from lumiere_jax.html_page import page

# The paper's two questions (section 5): visual quality and motion, and alignment with the text.
QUESTIONS = {
    "quality": "Which video has the better visual quality and motion?",
    "text": "Which video matches the text better?",
}
TITLE = "Which video is better?"


def study_page() -> str:
    """The page, HTML; what it shows it asks the server for."""
    body = [
        f"<main><h1>{TITLE}</h1>",
        _INTRO,
        '<section id="trial" aria-label="Comparison" hidden>',
        _CLIPS,
        '<form id="answers" autocomplete="off">',
        *(_question(name, text, 2 * place + 1) for place, (name, text) in enumerate(QUESTIONS.items())),
        '<p><button id="next" disabled>Next <kbd>Enter</kbd></button></p></form></section>',
        '<section id="done" tabindex="-1" hidden><h2>Thank you</h2><p>All of your answers are stored. You may close '
        "this page.</p></section>",
        '<p id="error" role="alert" hidden></p></main>',
        f"<script>{_SCRIPT}</script>",
    ]
    return page(TITLE, body, style=_STYLE)


def _question(name: str, text: str, first_key: int) -> str:
    choices = "\n".join(
        f'<label><input type="radio" name="{name}" value="{side}" required><span>{side.capitalize()}</span> '
        f"<kbd>{first_key + place}</kbd></label>"
        for place, side in enumerate(("left", "right"))
    )
    return f'<fieldset id="{name}" disabled><legend>{text}</legend><div class="choices">\n{choices}\n</div></fieldset>'


_INTRO = """<section id="new" hidden>
<p>You will see pairs of short videos, each with the text that it was made for. For each pair please answer two
questions. There is no “equal”: if you are not sure, follow your first impression.</p>
<ul>
<li>Both videos play in step, over and over. The answers open when you have seen them once.</li>
<li>Keys: <kbd>1</kbd> and <kbd>2</kbd> answer the first question, <kbd>3</kbd> and <kbd>4</kbd> the second,
<kbd>Enter</kbd> goes on, <kbd>P</kbd> pauses.</li>
<li>You may leave and come back in the same browser: you go on where you were. A cookie with a random number knows you;
nothing else is asked or stored of you.</li>
</ul>
<p><button id="start" type="button">Start</button></p>
</section>
<noscript><p>This page needs JavaScript.</p></noscript>"""

_CLIPS = """<p id="progress" tabindex="-1"></p>
<progress aria-labelledby="progress" value="0" max="1"></progress>
<p id="prompt"></p>
<div class="pair">
<figure><video id="left" muted playsinline preload="auto" aria-label="Left video"></video>
<figcaption>Left</figcaption></figure>
<figure><video id="right" muted playsinline preload="auto" aria-label="Right video"></video>
<figcaption>Right</figcaption></figure>
</div>
<p><button id="pause" type="button"></button> <span id="hint" class="quiet" role="status"></span></p>"""

_STYLE = """
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: clamp(.4rem, 2vw, 1.5rem); margin: .5rem 0; }
.pair figure { padding: .4rem; text-align: center; }
video { aspect-ratio: auto; max-height: max(12rem, 100vh - 28rem); image-rendering: auto; background: none; }
#answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .75rem; }
#answers p { grid-column: 1 / -1; }
#prompt { font-size: 1.25rem; font-weight: 600; }
progress { width: 100%; height: .5rem; accent-color: var(--accent); }
fieldset { margin: 0; min-width: 0; padding: .6rem .9rem .8rem; background: var(--card); border: 1px solid var(--edge);
  border-radius: .6rem; }
fieldset:disabled { opacity: .55; }
legend { float: left; width: 100%; margin-bottom: .5rem; font-weight: 600; }
.choices { display: grid; grid-template-columns: 1fr 1fr; gap: .75rem; clear: both; }
.choices label { display: flex; gap: .5rem; align-items: center; min-height: 2.75rem; padding: 0 .75rem;
  cursor: pointer; border: 1px solid var(--edge); border-radius: .4rem; }
.choices label:has(:checked) { border-color: var(--accent); box-shadow: inset 0 0 0 1px var(--accent); }
fieldset:disabled label { cursor: default; }
input { width: 1.2rem; height: 1.2rem; accent-color: var(--accent); }
button { min-height: 2.75rem; padding: 0 1.25rem; font: inherit; color: var(--ink); background: var(--card);
  border: 1px solid var(--edge); border-radius: .4rem; cursor: pointer; }
#start, #next { color: var(--page); background: var(--accent); border-color: var(--accent); font-weight: 600; }
button:disabled { opacity: .45; cursor: default; }
:focus-visible { outline: .2rem solid var(--accent); outline-offset: .15rem; }
#progress:focus, #done:focus { outline: none; }
kbd { padding: 0 .35rem; font-size: .75rem; border: 1px solid; border-radius: .25rem; opacity: .7; }
#error { padding: .6rem .9rem; border-left: .25rem solid var(--bad); background: var(--card); }
[hidden] { display: none; }
"""

_SCRIPT = """
"use strict";
const $ = (id) => document.getElementById(id);
const videos = [$("left"), $("right")], questions = [$("quality"), $("text")];
let number = 0, ended = new Set(), paused = matchMedia("(prefers-reduced-motion: reduce)").matches, sending = false;

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  const reply = await fetch(path, body && { method: "POST", headers, body: JSON.stringify(body) }).catch(() => {
    throw new Error("The server does not answer. What you answered before is stored; please try again.");
  });
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

function tell(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

async function show(trial) {
  for (const state of ["new", "trial", "done"]) $(state).hidden = trial.state !== state;
  for (const video of videos) video.pause();
  if (trial.state === "done") $("done").focus();
  if (trial.state !== "trial") return;
  number = trial.number;
  ended.clear();
  $("answers").reset();
  for (const question of questions) question.disabled = true;
  $("next").disabled = true;
  $("progress").textContent = `${number} of ${trial.total}`;
  Object.assign(document.querySelector("progress"), { value: number - 1, max: trial.total });
  $("prompt").textContent = trial.prompt;
  $("hint").textContent = "Please watch both videos to their end.";
  $("progress").focus();
  await Promise.all(videos.map((video) => new Promise((ready, failed) => {
    video.oncanplaythrough = ready;
    video.onerror = () => failed(new Error("A video cannot be shown. Please load the page again."));
    video.src = trial[video.id];
  })));
  await play();
}

async function play() {
  $("pause").textContent = paused ? "Play" : "Pause";
  if (paused) return videos.forEach((video) => video.pause());
  try {
    await Promise.all(videos.filter((video) => !ended.has(video)).map((video) => video.play()));
  } catch (error) {
    if (error.name !== "NotAllowedError") return;  // the next pair came, or a pause
    paused = true;
    await play();
  }
}

for (const video of videos) video.onended = async () => {
  ended.add(video);
  if (ended.size < videos.length) return;
  ended.clear();
  for (const question of questions) question.disabled = false;
  $("hint").textContent = "";
  for (const each of videos) each.currentTime = 0;
  await play();
};

$("pause").onclick = () => { paused = !paused; play(); };
$("answers").onchange = () => { $("next").disabled = sending || !$("answers").checkValidity(); };

async function send(path, body) {
  if (sending) return;
  sending = true;
  $("next").disabled = $("start").disabled = true;
  let trial = null;
  try {
    trial = await ask(path, body);
    tell(null);
  } catch (error) {
    tell(error);
  }
  sending = $("start").disabled = false;
  if (trial) await show(trial).catch(tell);
  else $("answers").onchange();
}

$("start").onclick = () => send("/raters", {});
$("answers").onsubmit = (event) => {
  event.preventDefault();
  const answers = Object.fromEntries(new FormData($("answers")));
  send("/votes", { number, ...answers });
};

document.onkeydown = (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat || $("trial").hidden) return;
  const choice = document.querySelectorAll("input")[Number(event.key) - 1];
  if (choice && !choice.closest("fieldset").disabled) choice.click();
  else if (event.key.toLowerCase() === "p") $("pause").click();
  // A focused field or button has its own Enter.
  else if (event.key === "Enter" && !event.target.closest("button, input") && !$("next").disabled) $("next").click();
};

ask("/trial").then(show).catch(tell);
"""
