// Picked rows, and the words of the button that acts on them.
export function pick() {
  const boxes = [...document.querySelectorAll("[data-pick]")];
  const all = document.querySelector("[data-pick-all]");
  const count = document.querySelector("[data-count]");
  const told = () => {
    const n = boxes.filter((box) => box.checked).length;
    for (const box of boxes) box.closest("tr").toggleAttribute("aria-selected", false);
    for (const box of boxes) if (box.checked) box.closest("tr").setAttribute("aria-selected", "true");
    all.checked = n === boxes.length;
    all.indeterminate = n > 0 && n < boxes.length;
    count.textContent = `Replay ${n} selected`;
    count.disabled = n === 0;
  };
  all.addEventListener("change", () => { for (const box of boxes) box.checked = all.checked; told(); });
  for (const box of boxes) box.addEventListener("change", told);
  told();
}
