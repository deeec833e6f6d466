"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const remembered = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  if (remembered()) root.dataset.theme = remembered();
  button.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* a page from disk may remember nothing */ }
  });

  const value = (row, column) => row.cells[column].textContent.trim();
  const numeric = text => Number(text.replaceAll("−", "-"));
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      const numbers = rows.every(row => value(row, column) === "–" || !Number.isNaN(numeric(value(row, column))));
      const compare = (a, b) => {
        const [left, right] = [value(a, column), value(b, column)];
        if (left === "–" || right === "–") return (left === "–") - (right === "–");  // nothing comes last, either way
        const order = numbers ? numeric(left) - numeric(right) : left.localeCompare(right, "en", { numeric: true });
        return descending ? -order : order;
      };
      table.tBodies[0].append(...rows.sort(compare));
    }));
  }

  const open = () => {
    let target = null;
    try { target = document.getElementById(decodeURIComponent(location.hash.slice(1))); } catch { /* no such place */ }
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  addEventListener("hashchange", open);
  open();
})();
