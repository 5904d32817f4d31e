"use strict";
(() => {
  const table = document.getElementById("table");
  if (!table) return;
  const $ = (id) => document.getElementById(id);
  const rows = [...table.tBodies];
  const heads = [...table.querySelectorAll(".sort th")];
  const asks = [...table.querySelectorAll(".unsteered .ask")];
  const search = $("search");
  let flag = "", group = "", random = false;

  const repliesOf = (row) => [...row.querySelectorAll("li")];
  const textOf = (reply) => reply.classList.contains("empty") ? "" : reply.lastChild.data;

  const filter = () => {
    const query = search.value.trim().toLowerCase();
    const ranges = [];
    const shown = { feature: 0, control: 0 }, all = { feature: 0, control: 0 };
    for (const row of rows) {
      const kind = row.classList.contains("control") ? "control" : "feature";
      let found = !query;
      for (const reply of repliesOf(row)) {
        const whole = textOf(reply), text = query && whole.toLowerCase();
        const hit = query !== "" && text.includes(query);
        reply.classList.toggle("hit", hit);
        found ||= hit;
        if (!hit || text.length !== whole.length) continue;
        for (let at = text.indexOf(query); at >= 0; at = text.indexOf(query, at + query.length)) {
          const node = reply.lastChild;
          // a live range would be looked at again whenever a row is moved
          ranges.push(new StaticRange({ startContainer: node, startOffset: at, endContainer: node, endOffset: at + query.length }));
        }
      }
      row.hidden = !found || (flag && row.dataset.flag !== flag) || (group && row.dataset.group !== group) || (kind === "control" && !random);
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
    const valued = [...table.tBodies].map((row) => [row.rows[0].cells[column].dataset.value, row]);
    valued.sort(([a], [b]) => (a === "") - (b === "") || direction * (a - b));
    table.append(...valued.map(([, row]) => row));
  };

  // prompts stand in the page once, at the unsteered replies, and come to others as they are opened
  const ask = (row) => {
    if (row.querySelector(".ask")) return;
    for (const [i, reply] of repliesOf(row).entries()) {
      const prompt = document.createElement("p");
      prompt.className = "ask";
      prompt.textContent = asks[i].textContent + (reply.classList.contains("same") ? " (as unsteered)" : "");
      reply.prepend(prompt);
    }
  };

  const fold = (part, open) => {
    if (part !== table.tHead) ask(part);
    part.classList.toggle("open", open);
    part.querySelector(".more").setAttribute("aria-expanded", part.classList.contains("open"));
  };

  for (const head of heads) head.firstElementChild.addEventListener("click", (event) => {
    const first = event.currentTarget.dataset.first === "low" ? "ascending" : "descending";
    const now = head.getAttribute("aria-sort");
    sort(head, (now ? now === "descending" : first === "ascending") ? 1 : -1);
  });
  table.addEventListener("click", (event) => {
    if (event.target.closest("a")) return;
    const part = event.target.closest(".vec") || event.target.closest(".unsteered .words") && table.tHead;
    if (part && getSelection().isCollapsed) fold(part);
  });
  const press = (button, on) => button.setAttribute("aria-pressed", on);
  const flags = [...document.querySelectorAll("[data-show]")];
  const choose = (show) => {
    flag = show;
    for (const other of flags) press(other, other.dataset.show === flag);
  };
  for (const button of flags) button.addEventListener("click", () => { choose(button.dataset.show); filter(); });
  const withRandom = (on) => { random = on; press($("controls"), on); };
  $("controls").addEventListener("click", () => { withRandom(!random); filter(); });
  $("unfold").addEventListener("click", () => {
    const open = $("unfold").getAttribute("aria-pressed") !== "true";
    press($("unfold"), open);
    for (const row of rows) fold(row, open);
  });
  search.addEventListener("input", filter);

  const only = (number) => {
    group = number;
    $("ungroup").hidden = !group;
    $("ungroup").textContent = `group ${group} ×`;
  };
  // the address names a feature, which is opened, or a group, which is shown alone
  const follow = () => {
    const [, kind, number] = /^#(feature|random|group)-(\d+)$/.exec(location.hash) || [];
    const there = number && $(`${kind}-${number}`);
    if (!there) return;
    if (kind === "group") {
      choose("");
      search.value = "";
      only(number);
    } else if (kind === "random") withRandom(true);
    filter();
    if (there.hidden) {
      choose("");
      search.value = "";
      only("");
      filter();
    }
    if (kind !== "group") fold(there, true);
    (kind === "group" ? table : there).scrollIntoView();
  };
  addEventListener("hashchange", follow);
  $("ungroup").addEventListener("click", () => {
    history.replaceState(null, "", "#");
    only("");
    filter();
  });

  // a spreadsheet takes text that begins like this for a formula
  const text = (value) => `"${(/^\s*[=+\-@＝＋－＠]/.test(value) ? `'${value}` : value).replaceAll('"', '""')}"`;
  const csv = () => {
    const over = [...table.querySelectorAll("thead .group > *")].flatMap((cell) => Array(cell.colSpan).fill(cell.textContent));
    const names = heads.map((head, i) => [over[i], head.textContent.trim()].filter(Boolean).join(": "));
    const lines = [...table.tBodies].filter((row) => !row.hidden).map((row) => {
      const [place, , flagged, ...values] = [...row.rows[0].cells].map((cell) => cell.dataset.value);
      return [place, text(row.rows[0].cells[1].textContent.trim()), text(row.dataset.flag), ...values, ...repliesOf(row).map((reply) => text(textOf(reply)))];
    });
    return [[...names, ...asks.map((ask) => ask.textContent)].map(text), ...lines].map((line) => line.join(",") + "\r\n").join("");
  };
  $("csv").addEventListener("click", () => {
    const link = document.createElement("a");
    // spreadsheets take a file for UTF-8 if it begins so
    link.href = URL.createObjectURL(new Blob(["\ufeff", csv()], { type: "text/csv" }));
    link.download = "features.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  });

  filter();
  follow();
})();
