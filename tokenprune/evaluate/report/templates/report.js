"use strict";
(() => {
  const all = (query, root = document) => Array.from(root.querySelectorAll(query));

  // Light and dark: the system's choice until the button is pressed.
  const root = document.documentElement;
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Tables: numbers by value, largest first at the first click; texts from A; missing cells last, either way.
  const key = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
    return cell.classList.contains("number") ? null : cell.textContent.trim();
  };
  const sort = (table, column, header) => {
    const numeric = header.classList.contains("number");
    const before = header.getAttribute("aria-sort");
    const ascending = before === "none" ? !numeric : before === "descending";
    const body = table.tBodies[0];
    const rows = Array.from(body.rows).map((row) => [key(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
      return ascending ? order : -order;
    });
    body.append(...rows.map(([, row]) => row));
    for (const other of all("th", table)) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  };
  for (const table of all("table.sortable")) {
    all("th", table).forEach((header, column) => {
      header.querySelector("button").addEventListener("click", () => sort(table, column, header));
    });
  }
  for (const field of all(".filter input")) {
    const body = field.closest(".table-block").querySelector("tbody");
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  }

  // Galleries: without this script every slide shows.
  const turns = new Map();
  for (const pager of all(".pager")) {
    const slides = all(".slide", pager);
    let place = 0;
    const show = (to) => {
      place = (to + slides.length) % slides.length;
      slides.forEach((slide, i) => { slide.hidden = i !== place; });
      pager.querySelector(".place").textContent = `${place + 1} / ${slides.length}`;
    };
    turns.set(pager, (step) => show(place + step));
    pager.querySelector(".previous").addEventListener("click", () => show(place - 1));
    pager.querySelector(".next").addEventListener("click", () => show(place + 1));
    if (slides.length < 2) pager.querySelector(".controls").hidden = true;
    show(0);
  }
  const visible = (element) => {
    const box = element.getBoundingClientRect();
    return box.bottom > 0 && box.top < window.innerHeight;
  };
  document.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, .scroll, dialog")) return;
    const pager = event.target.closest(".pager") || Array.from(turns.keys()).find(visible);
    if (!pager) return;
    event.preventDefault();
    turns.get(pager)(step);
  });

  // Pictures at full size.
  const large = document.getElementById("large");
  for (const button of all(".zoom")) {
    button.addEventListener("click", () => {
      const picture = button.querySelector("img");
      large.querySelector("img").src = picture.src;
      large.querySelector("img").alt = picture.alt;
      large.showModal();
    });
  }
  large.addEventListener("click", () => large.close());

  for (const button of all(".copy")) {
    const code = button.parentElement.querySelector("code");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        window.getSelection().selectAllChildren(code); // no access to the clipboard: mark the text instead
      }
    });
  }
})();
