"use strict";
(() => {
  document.documentElement.classList.add("js");
  const table = document.getElementById("table");
  if (!table) return;
  const $ = (id) => document.getElementById(id);
  const rows = [...table.tBodies];
  const heads = [...table.querySelectorAll(".sort th")];
  const search = $("search");
  let flag = "", random = false;

  const filter = () => {
    const query = search.value.trim().toLowerCase();
    const ranges = [];
    const shown = { feature: 0, control: 0 }, all = { feature: 0, control: 0 };
    for (const row of rows) {
      const kind = row.classList.contains("control") ? "control" : "feature";
      let found = !query;
      for (const reply of row.querySelectorAll(".reply")) {
        const node = reply.querySelector(".say:not(.empty)")?.firstChild;
        const text = node ? node.data.toLowerCase() : "";
        const hit = query !== "" && text.includes(query);
        reply.classList.toggle("hit", hit);
        found ||= hit;
        if (!hit || text.length !== node.data.length) continue;
        for (let at = text.indexOf(query); at >= 0; at = text.indexOf(query, at + query.length)) {
          const range = new Range();
          range.setStart(node, at);
          range.setEnd(node, at + query.length);
          ranges.push(range);
        }
      }
      row.hidden = !found || (flag && row.dataset.flag !== flag) || (kind === "control" && !random);
      all[kind] += 1;
      shown[kind] += !row.hidden;
    }
    if (CSS.highlights) CSS.highlights.set("found", new Highlight(...ranges));
    $("count").textContent = `${shown.feature} of ${all.feature} features` + (random ? `, ${shown.control} of ${all.control} random directions` : "");
  };

  const sort = (head, direction) => {
    const column = heads.indexOf(head);
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const value = (row) => row.rows[0].cells[column].dataset.value;
    const order = (a, b) => (a === "") - (b === "") || direction * (a - b);
    table.append(...[...rows].sort((a, b) => order(value(a), value(b))));
  };

  const fold = (part, open) => {
    part.classList.toggle("open", open);
    part.querySelector(".more").setAttribute("aria-expanded", part.classList.contains("open"));
  };

  for (const head of heads) head.firstElementChild.addEventListener("click", (event) => {
    const first = event.currentTarget.dataset.first === "low" ? "ascending" : "descending";
    const now = head.getAttribute("aria-sort");
    sort(head, (now ? now === "descending" : first === "ascending") ? 1 : -1);
  });
  table.addEventListener("click", (event) => {
    const part = event.target.closest(".vec") || event.target.closest(".unsteered .words") && table.tHead;
    if (part && getSelection().isCollapsed) fold(part);
  });
  const press = (button, on) => button.setAttribute("aria-pressed", on);
  const flags = [...document.querySelectorAll("[data-show]")];
  for (const button of flags) button.addEventListener("click", () => {
    flag = button.dataset.show;
    for (const other of flags) press(other, other === button);
    filter();
  });
  $("controls").addEventListener("click", () => { random = !random; press($("controls"), random); filter(); });
  $("unfold").addEventListener("click", () => {
    const open = $("unfold").getAttribute("aria-pressed") !== "true";
    press($("unfold"), open);
    for (const row of rows) fold(row, open);
  });
  search.addEventListener("input", filter);
  filter();
})();
