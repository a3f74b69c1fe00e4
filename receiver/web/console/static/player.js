// One audio element, its outline, and words that follow. The file is never decoded here.
import { wave } from "./wave.js";

const clock = (s) => `${Math.floor(s / 60)}:${(s % 60).toFixed(1).padStart(4, "0")}`;
// A start that is paused before it began is no error.
const begin = (sound) => sound.play().catch(() => {});
const still = matchMedia("(prefers-reduced-motion: reduce)");

// The words that light up. They are one stop of the Tab key; inside, arrows move and Enter plays.
function transcript(talk, sound, seek) {
  if (!talk) return { light: () => "" };
  const words = [...talk.querySelectorAll(".w")].sort((a, b) => a.dataset.s - b.dataset.s);
  const starts = words.map((w) => Number(w.dataset.s)), ends = words.map((w) => Number(w.dataset.e));
  const follow = document.querySelector("[data-follow]");
  let lit = -1;

  const find = (t) => {
    let low = 0, high = starts.length - 1, best = -1;
    while (low <= high) { const m = (low + high) >> 1; if (starts[m] <= t) { best = m; low = m + 1; } else high = m - 1; }
    return best >= 0 && t <= ends[best] + 0.25 ? best : -1;
  };
  const light = (t) => {
    const k = find(t);
    if (k !== lit) {
      if (lit >= 0) { words[lit].classList.remove("now"); words[lit].removeAttribute("aria-current"); }
      lit = k;
      if (k >= 0) {
        words[k].classList.add("now");
        words[k].setAttribute("aria-current", "true");
        const box = words[k].getBoundingClientRect();
        const away = box.bottom > innerHeight - 40 || box.top < 60;
        if (away && follow?.checked && sound && !sound.paused) words[k].scrollIntoView({ block: "center", behavior: still.matches ? "auto" : "smooth" });
      }
    }
    return lit >= 0 ? words[lit].textContent : "";
  };
  if (sound) {
    words.forEach((w, k) => { w.tabIndex = k ? -1 : 0; w.setAttribute("role", "button"); });
    talk.addEventListener("click", (e) => {
      const word = e.target.closest(".w"), turn = e.target.closest(".turn");
      if (word) seek(Number(word.dataset.s), true);
      else if (turn && e.target.closest("a")) { e.preventDefault(); seek(Number(turn.dataset.start), true); }
    });
    talk.addEventListener("keydown", (e) => {
      const k = words.indexOf(document.activeElement);
      if (k < 0) return;
      const to = { ArrowRight: k + 1, ArrowLeft: k - 1, Home: 0, End: words.length - 1 }[e.key];
      if (words[to]) { e.preventDefault(); words[k].tabIndex = -1; words[to].tabIndex = 0; words[to].focus(); }
      if (e.key === "Enter" || e.key === " ") { e.preventDefault(); seek(starts[k], true); }
    });
  }
  return { light };
}

// Channels can be heard one by one only where the audio is of our own origin: a browser mutes the rest.
function channels(deck, sound) {
  const group = deck.querySelector("[data-channels]");
  let gains = null;
  const split = () => {
    const context = new AudioContext(), from = context.createMediaElementSource(sound);
    const parts = context.createChannelSplitter(2), join = context.createChannelMerger(2);
    from.connect(parts);
    gains = [0, 1].map((k) => { const one = context.createGain(); parts.connect(one, k); one.connect(join, 0, 0); one.connect(join, 0, 1); return one; });
    join.connect(context.destination);
  };
  group.hidden = false;
  for (const button of group.querySelectorAll("[data-ch]")) {
    button.addEventListener("click", () => {
      if (!gains) split();
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      gains[Number(button.dataset.ch)].gain.value = on ? 1 : 0;
    });
  }
}

function controls(deck, sound, show) {
  const toggle = deck.querySelector("[data-toggle]"), face = toggle.querySelector("use");
  const set = (name, label) => { face.setAttribute("href", face.getAttribute("href").replace(/#.*/, `#${name}`)); toggle.setAttribute("aria-label", label); };
  let frame = 0;
  const run = () => { show(); frame = requestAnimationFrame(run); };
  sound.addEventListener("play", () => { set("pause", "Pause"); cancelAnimationFrame(frame); run(); });
  sound.addEventListener("pause", () => { set("play", "Play"); cancelAnimationFrame(frame); show(); });
  sound.addEventListener("seeked", show);
  toggle.addEventListener("click", () => (sound.paused ? begin(sound) : sound.pause()));
  deck.querySelector("[data-speed]").addEventListener("change", (e) => { sound.playbackRate = Number(e.target.value); });
}

function slider(lanes, canvas, seconds, sound, seek, drawn) {
  const place = (e) => ((e.clientX - canvas.getBoundingClientRect().left) / canvas.clientWidth) * seconds;
  lanes.addEventListener("pointerdown", (e) => { lanes.setPointerCapture(e.pointerId); seek(place(e)); });
  lanes.addEventListener("pointermove", (e) => { if (e.buttons) seek(place(e)); drawn.point(e.offsetX); });
  lanes.addEventListener("pointerleave", () => drawn.point(null));
  lanes.addEventListener("keydown", (e) => {
    const by = { ArrowLeft: -2, ArrowDown: -2, ArrowRight: 2, ArrowUp: 2, PageDown: -seconds / 10, PageUp: seconds / 10, Home: -seconds, End: seconds }[e.key];
    if (by === undefined) return;
    e.preventDefault();
    seek(sound.currentTime + by);
  });
}

async function outlineOf(address) {
  try {
    let answer = await fetch(address);
    while (answer.status === 202) {
      await new Promise((later) => setTimeout(later, 1000));
      answer = await fetch(address);
    }
    return answer.ok ? await answer.json() : { peaks: [], error: `the outline could not be fetched (${answer.status})` };
  } catch { return { peaks: [], error: "the outline could not be fetched" }; }
}

export async function play() {
  const box = document.querySelector("[data-player]"), talk = document.querySelector("[data-talk]");
  if (!box) return;
  const sound = box.querySelector("audio"), deck = box.querySelector("[data-deck]"), lanes = box.querySelector("[data-lanes]");
  const at = deck.querySelector("[data-at]");
  let seconds = 0, drawn = { draw: () => {}, point: () => {} };

  const show = () => {
    const t = sound.currentTime;
    at.textContent = clock(t);
    const word = words.light(t);
    lanes.setAttribute("aria-valuenow", t.toFixed(1));
    lanes.setAttribute("aria-valuetext", `${t.toFixed(1)} seconds${word ? `, ${word}` : ""}`);
    drawn.draw();
  };
  const seek = (t, start) => { sound.currentTime = Math.max(0, seconds ? Math.min(seconds - 0.01, t) : t); if (start) begin(sound); show(); };
  const words = transcript(talk, sound, seek);

  sound.controls = false;
  deck.hidden = false;
  controls(deck, sound, show);
  const moment = () => { const asked = /^#t=([\d.]+)$/.exec(location.hash); if (asked) seek(Number(asked[1])); };
  addEventListener("hashchange", moment);
  moment();

  const outline = await outlineOf(box.dataset.player);
  if (outline.error || !outline.peaks.length) {
    const why = box.querySelector("[data-no-wave]");
    why.hidden = false;
    why.textContent = `No waveform: ${outline.error}.`;
    return;
  }
  seconds = outline.seconds;
  deck.querySelector("[data-all]").textContent = clock(seconds);
  lanes.hidden = false;
  lanes.setAttribute("aria-valuemax", seconds.toFixed(1));
  drawn = wave(lanes.querySelector("canvas"), outline, sound, seconds);
  slider(lanes, lanes.querySelector("canvas"), seconds, sound, seek, drawn);
  if (outline.peaks.length === 2 && new URL(sound.currentSrc || sound.src).origin === location.origin) channels(deck, sound);
  show();
}
