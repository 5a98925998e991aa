// The page of pmwal serve. What it shows of records reaches the document as text nodes only, and it keeps a limited number of them.
"use strict";

const ROWS_MAX = 1000; // entries in the document
const BACK = 300; // entries that are shown at first
const RATE = 2000; // entries a second that the server sends at most
const CUT = 4000; // characters of an entry

const $ = (id) => document.getElementById(id);
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};
const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const grouped = (number) => Math.round(number).toLocaleString("en-US");

// Characters that show nothing, or let a line show something else, are written out.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;
const visible = (text) => text.replace(HIDDEN, (each) => "\\u" + each.charCodeAt(0).toString(16).padStart(4, "0"));

// -- the token: from the URL into the storage of this tab, and from there into a header

function takeToken() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const given = fragment.get("token");
  if (given === null) return;
  sessionStorage.setItem("pmwal-token", given);
  fragment.delete("token");
  const rest = fragment.toString();
  history.replaceState(null, "", location.pathname + (rest ? "#" + rest : ""));
}

function ask(path, headers = {}, signal = undefined) {
  const token = sessionStorage.getItem("pmwal-token");
  const all = token ? { Authorization: "Bearer " + token, ...headers } : headers;
  return fetch(path, { headers: all, signal, cache: "no-store", credentials: "omit", redirect: "error" });
}

function signIn() {
  if (!$("sign-in").open) $("sign-in").showModal();
}

// -- filters

const FILTERS = ["level", "logger", "field", "grep"];

function readFragment() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  for (const name of FILTERS) $(name).value = fragment.get(name) ?? "";
  if ($("level").selectedIndex < 0) $("level").value = "";
}

function writeFragment() {
  const fragment = new URLSearchParams();
  for (const name of FILTERS) if ($(name).value) fragment.set(name, $(name).value);
  const text = fragment.toString();
  history.replaceState(null, "", location.pathname + (text ? "#" + text : ""));
}

function parameters() {
  const made = new URLSearchParams({ rate: RATE, cut: CUT });
  for (const name of FILTERS) {
    const value = $(name).value.trim();
    if (value) made.append(name, value);
  }
  return made;
}

// -- entries: from the stream, through a short queue, into the document

const view = {
  paused: false,
  byScroll: false, // paused because somebody reads older entries
  pending: [], // entries and marks that wait for the next frame
  drawing: false,
  dropped: 0,
  last: "", // the cursor of the last entry that came
  run: 0, // of streams; an older one has nothing to say
  abort: null,
  chosen: null,
  entries: new WeakMap(), // row -> entry
};

function setState(name, text) {
  $("state").className = "state " + name;
  $("state").textContent = text;
}

function countDrops(count) {
  if (!count) return;
  view.dropped += count;
  $("drops").hidden = false;
  $("drops").textContent = grouped(view.dropped) + " dropped";
  $("drops").title = "Entries that came faster than this page takes them, or were overwritten before they were read";
}

function mark(text, count = 0) {
  const last = view.pending[view.pending.length - 1];
  if (count && last && last.count) {
    last.count += count;
    return;
  }
  push({ mark: text, count });
}

function push(each) {
  view.pending.push(each);
  if (view.pending.length > ROWS_MAX) {
    let lost = 0;
    for (const old of view.pending.splice(0, view.pending.length - ROWS_MAX)) if (!old.mark) lost += 1;
    countDrops(lost);
  }
  if (!view.drawing) {
    view.drawing = true;
    // A hidden page draws no frames; it keeps the newest entries until it is seen.
    requestAnimationFrame(draw);
  }
}

function take(name, id, data) {
  const value = JSON.parse(data);
  if (name === "message") {
    view.last = id;
    push(value);
  } else if (name === "drop") {
    countDrops(value.dropped + value.missed);
    mark("dropped", value.dropped + value.missed);
  } else {
    mark(String(value.unfinished ?? value.error));
  }
}

function parseEvents(text) {
  let at = 0;
  for (;;) {
    const end = text.indexOf("\n\n", at);
    if (end < 0) return text.slice(at);
    let name = "message";
    let id = "";
    let data = "";
    for (const line of text.slice(at, end).split("\n")) {
      if (line.startsWith("data: ")) data = line.slice(6);
      else if (line.startsWith("id: ")) id = line.slice(4);
      else if (line.startsWith("event: ")) name = line.slice(7);
    }
    if (data) take(name, id, data);
    at = end + 2;
  }
}

async function follow() {
  const run = ++view.run;
  view.abort?.abort();
  let pause = 1;
  while (run === view.run && !view.paused) {
    view.abort = new AbortController();
    const headers = { Accept: "text/event-stream" };
    if (view.last) headers["Last-Event-ID"] = view.last;
    else headers.Range = `entries=:-${BACK}:`;
    try {
      const response = await ask("entries?" + parameters(), headers, view.abort.signal);
      if (run !== view.run) return;
      if (!response.ok) {
        if (await refused(response)) return;
        if (response.status === 503) pause = 5;
      } else {
        setState("live", "live");
        wrong("");
        showNothing(); // no frame is drawn for what does not match
        pause = 1;
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        for (let rest = ""; ; ) {
          const { done, value } = await reader.read();
          if (done || run !== view.run) break;
          rest = parseEvents(rest + value);
        }
      }
    } catch (error) {
      if (run !== view.run) return;
    }
    if (run !== view.run || view.paused) return;
    setState("lost", "connecting again");
    await sleep(pause);
    pause = Math.min(2 * pause, 15);
  }
}

// Whether there is no sense in asking again.
async function refused(response) {
  const said = await response.json().then((body) => body.error, () => response.statusText);
  if (response.status === 401) {
    setState("lost", "no token");
    signIn();
    return true;
  }
  if (response.status === 400) {
    setState("lost", "no such filter");
    wrong(said);
    return true;
  }
  if (response.status === 410) {
    view.last = "";
    mark("what comes next is not known: the log was rolled back, or is another one");
  }
  return false;
}

function wrong(text) {
  $("wrong").textContent = text;
  for (const name of FILTERS) $(name).removeAttribute("aria-invalid");
  if (text) for (const name of FILTERS) if ($(name).value) $(name).setAttribute("aria-invalid", "true");
}

function restart() {
  view.last = "";
  view.pending = [];
  view.chosen = null;
  $("rows").replaceChildren();
  $("nothing").hidden = true;
  if (view.paused) resume();
  else {
    setState("", "searching");
    follow();
  }
}

function pause(byScroll = false) {
  if (view.paused) return;
  view.paused = true;
  view.byScroll = byScroll;
  view.run += 1;
  view.abort?.abort();
  $("pause").setAttribute("aria-pressed", "true");
  $("pause").textContent = "Continue";
  setState("paused", byScroll ? "paused: reading older entries" : "paused");
}

function resume() {
  view.paused = view.byScroll = false;
  $("pause").setAttribute("aria-pressed", "false");
  $("pause").textContent = "Pause";
  setState("", "connecting");
  toEnd();
  follow();
}

// -- rows

const LEVELS = [[50, "critical"], [40, "error"], [30, "warning"], [20, "info"], [1, "debug"]];
const SHORT = { CRITICAL: "CRIT", WARNING: "WARN" };

function clock(text) {
  const when = new Date(text);
  if (Number.isNaN(when.getTime())) return text.slice(11, 23);
  const two = (number) => String(number).padStart(2, "0");
  return `${two(when.getHours())}:${two(when.getMinutes())}:${two(when.getSeconds())}.${text.slice(20, 23)}`;
}

function shown(value) {
  return visible(typeof value === "string" ? value : JSON.stringify(value));
}

function rowOf(entry) {
  const level = LEVELS.find(([least]) => entry.levelno >= least);
  const row = make("div", "row " + (level ? level[1] : "plain"));
  const time = make("time", "", clock(entry.time));
  time.dateTime = entry.time;
  const text = make("span", "text", visible(entry.message.slice(0, 1000)));
  if (entry.traceback) text.append(" ", make("span", "traced", visible(lastLine(entry.traceback))));
  if (entry.fields) {
    const pairs = Object.entries(entry.fields).slice(0, 20).map(([name, value]) => `${visible(name)}=${shown(value).slice(0, 80)}`);
    text.append(" ", make("span", "fields", pairs.join(" ")));
  }
  const name = visible(entry.level ?? "");
  row.append(
    time,
    make("span", "level", SHORT[name] ?? name),
    make("span", "log", visible(entry.log)),
    make("span", "logger", visible(entry.logger ?? "")),
    text,
  );
  view.entries.set(row, entry);
  return row;
}

function lastLine(text) {
  const lines = text.trimEnd().split("\n");
  return lines[lines.length - 1].slice(0, 300);
}

function detailOf(entry) {
  const detail = make("div", "detail");
  detail.append(make("pre", "", visible(entry.message)));
  const table = make("table");
  const add = (name, value, choose) => {
    const line = make("tr");
    const cell = make("td");
    if (choose) {
      const button = make("button", "", value);
      button.type = "button";
      button.title = "Show only these";
      button.addEventListener("click", choose);
      cell.append(button);
    } else cell.append(value);
    line.append(make("th", "", name), cell);
    table.append(line);
  };
  for (const [name, value] of Object.entries(entry.fields ?? {})) {
    const plain = typeof value === "object" || String(value).length > 100 ? null : `${name}=${value}`;
    add(visible(name), shown(value), plain && (() => choose("field", plain)));
  }
  if (entry.logger) add("logger", visible(entry.logger), () => choose("logger", entry.logger));
  if (entry.level) add("level", visible(entry.level) + ` (${entry.levelno})`);
  add("time", entry.time);
  add("log", visible(entry.log));
  add("record", String(entry.seq));
  if (entry.cut) add("", `It is longer; the first ${grouped(CUT)} characters are shown.`);
  detail.append(table);
  if (entry.traceback) detail.append(make("pre", "trace", visible(entry.traceback)));
  return detail;
}

function choose(name, value) {
  $(name).value = value;
  writeFragment();
  restart();
}

function draw() {
  view.drawing = false;
  const fragment = document.createDocumentFragment();
  for (const each of view.pending.splice(0)) {
    if (each.mark) fragment.append(make("div", "mark", each.count ? grouped(each.count) + " " + each.mark : each.mark));
    else fragment.append(rowOf(each));
  }
  const rows = $("rows");
  rows.append(fragment);
  for (let excess = rows.childElementCount - ROWS_MAX; excess > 0; excess -= 1) rows.firstElementChild.remove();
  if (view.chosen && !view.chosen.isConnected) view.chosen = null;
  showNothing();
  if (!view.byScroll) toEnd();
}

function showNothing() {
  const empty = !$("rows").childElementCount;
  $("nothing").hidden = !empty;
  $("nothing").textContent = FILTERS.some((name) => $(name).value) ? "Nothing matches yet." : "No entries yet.";
}

let scrolledByPage = 0;

function toEnd() {
  const tail = $("tail");
  scrolledByPage = tail.scrollHeight - tail.clientHeight;
  tail.scrollTop = tail.scrollHeight;
}

function onScroll() {
  const tail = $("tail");
  const left = tail.scrollHeight - tail.clientHeight - tail.scrollTop;
  if (left > 60 && tail.scrollTop < scrolledByPage - 60 && !view.paused) pause(true);
  else if (left < 5 && view.paused && view.byScroll) resume();
}

function chooseRow(row) {
  view.chosen?.classList.remove("chosen");
  view.chosen = row;
  row?.classList.add("chosen");
  row?.scrollIntoView({ block: "nearest" });
}

function step(forward) {
  const next = (row) => (forward ? row.nextElementSibling : row.previousElementSibling);
  let row = view.chosen ? next(view.chosen) : forward ? $("rows").firstElementChild : $("rows").lastElementChild;
  while (row && !view.entries.has(row)) row = next(row);
  if (!row) return;
  if (!view.paused) pause();
  chooseRow(row);
}

function toggle(row) {
  if (row.nextElementSibling?.classList.contains("detail")) {
    row.nextElementSibling.remove();
    return;
  }
  if (!view.paused) pause();
  const detail = detailOf(view.entries.get(row));
  row.after(detail);
  detail.scrollIntoView({ block: "nearest" });
}

// -- keys and pointers

const KEYS = {
  p: () => (view.paused ? resume() : pause()),
  " ": () => (view.paused ? resume() : pause()),
  G: () => newest(),
  End: () => newest(),
  j: () => step(true),
  ArrowDown: () => step(true),
  k: () => step(false),
  ArrowUp: () => step(false),
  Enter: () => view.chosen && toggle(view.chosen),
  "/": () => $("grep").focus(),
  l: () => nextLevel(),
  x: () => clearFilters(),
  f: () => toggleFigures(),
  "?": () => $("help").showModal(),
};

function newest() {
  if (view.paused) resume();
  else toEnd();
}

function nextLevel() {
  const level = $("level");
  level.selectedIndex = (level.selectedIndex + 1) % level.options.length;
  filtersChanged();
}

function clearFilters() {
  for (const name of FILTERS) $(name).value = "";
  filtersChanged();
}

function toggleFigures() {
  const open = $("figures").classList.toggle("open");
  $("figures-button").setAttribute("aria-expanded", String(open));
  drawRates();
  drawHeat();
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || $("help").open || $("sign-in").open) return;
  const target = event.target;
  if (event.key === "Escape") {
    if (target instanceof HTMLInputElement) $("tail").focus();
    else if (view.chosen) chooseRow(null);
    return;
  }
  if (target instanceof HTMLInputElement || target instanceof HTMLSelectElement) return;
  if (target instanceof HTMLButtonElement && (event.key === " " || event.key === "Enter")) return;
  const action = KEYS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

let changing = 0;

function filtersChanged() {
  clearTimeout(changing);
  changing = setTimeout(() => {
    writeFragment();
    restart();
  }, 300);
}

function begin() {
  takeToken();
  readFragment();
  document.addEventListener("keydown", onKey);
  $("filters").addEventListener("input", filtersChanged);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("pause").addEventListener("click", KEYS.p);
  $("newest").addEventListener("click", newest);
  $("figures-button").addEventListener("click", toggleFigures);
  $("help-button").addEventListener("click", KEYS["?"]);
  $("help-close").addEventListener("click", () => $("help").close());
  $("tail").addEventListener("scroll", onScroll, { passive: true });
  $("rows").addEventListener("click", (event) => {
    const row = event.target instanceof Element ? event.target.closest(".row") : null;
    if (!row || String(getSelection())) return;
    chooseRow(row);
    toggle(row);
  });
  $("heat").addEventListener("pointermove", (event) => {
    const box = $("heat").getBoundingClientRect();
    const x = (event.clientX - box.left - HEAT.left) / (box.width - HEAT.left);
    const y = 1 - (event.clientY - box.top) / (box.height - HEAT.bottom);
    stats.hover = x >= 0 && x < 1 && y >= 0 && y < 1 ? { x, y } : null;
    drawHeat();
  });
  $("heat").addEventListener("pointerleave", () => {
    stats.hover = null;
    drawHeat();
  });
  $("sign-in-form").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("pmwal-token", $("token").value.trim());
    $("token").value = "";
    $("sign-in").close();
    follow();
  });
  window.addEventListener("hashchange", () => {
    takeToken();
    readFragment();
    restart();
  });
  new ResizeObserver(() => {
    drawRates();
    drawHeat();
    if (!view.paused) toEnd();
  }).observe($("tail"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    drawRates();
    drawHeat();
  });
  showNothing();
  follow();
  watchStats();
}

begin();
