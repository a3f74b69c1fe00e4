// The server writes UTC; the reader sees the own zone, and UTC on hover.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

export function times(root) {
  const today = day.format(new Date());
  for (const t of root.querySelectorAll("time[datetime]")) {
    const at = new Date(t.dateTime);
    if (Number.isNaN(at.valueOf())) continue;
    const date = day.format(at);
    t.textContent = "day" in t.dataset || date !== today ? `${date}, ${clock.format(at)}` : clock.format(at);
    t.title = `${at.toISOString().replace("T", " ").replace("Z", "")} UTC`;
  }
  const said = root.querySelector("[data-zone]");
  if (said) said.textContent = `times in ${zone.replaceAll("_", " ")}`;
}
