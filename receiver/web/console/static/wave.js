// Draws an audio's outline on a canvas, one lane for each channel; what was played in the voice's colour.
const bytes = (text) => Int8Array.from(atob(text), (char) => char.charCodeAt(0));
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export function wave(canvas, outline, sound, seconds) {
  const lanes = outline.peaks.map(bytes);
  let inks = [], rest = "", ink = "", hover = null;

  function look() {
    inks = [colour("--voice-a"), colour("--voice-b")];
    rest = colour("--unplayed");
    ink = colour("--ink");
  }

  function lane(g, row, number, width, each) {
    const middle = each * (number + 0.5), tall = each * 0.46, now = (sound.currentTime / seconds) * width;
    const bars = Math.floor(width / 3), loud = row.reduce((most, one) => Math.max(most, Math.abs(one)), 24);
    for (let k = 0; k < bars; k += 1) {
      const from = Math.floor((k / bars) * outline.buckets);
      const to = Math.max(from + 1, Math.floor(((k + 1) / bars) * outline.buckets));
      let low = 0, high = 0;
      for (let b = from; b < to; b += 1) { low = Math.min(low, row[2 * b]); high = Math.max(high, row[2 * b + 1]); }
      const up = Math.max(0.6, (high / loud) * tall), down = Math.max(0.6, (-low / loud) * tall);
      g.fillStyle = k * 3 < now ? inks[number % 2] : rest;
      g.fillRect(k * 3, middle - up, 2, up + down);
    }
  }

  function draw() {
    const width = canvas.clientWidth, height = canvas.clientHeight, ratio = devicePixelRatio || 1;
    if (!width) return;
    if (canvas.width !== Math.round(width * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio); }
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    lanes.forEach((row, number) => lane(g, row, number, width, height / lanes.length));
    g.fillStyle = ink;
    g.fillRect(Math.min(width - 1.5, (sound.currentTime / seconds) * width), 0, 1.5, height);
    if (hover !== null) { g.globalAlpha = 0.35; g.fillRect(hover, 0, 1, height); g.globalAlpha = 1; }
  }

  look();
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { look(); draw(); });
  return { draw, point: (x) => { hover = x; draw(); } };
}
