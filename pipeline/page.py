"""The status page: one constant document that asks ``/status`` and ``/pictures`` and fills itself in.

Nothing of the daemon's is written into the document, and the script sets text and never markup; so no name or
message, whoever produced it, can become part of the page's code.
"""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f4f5f7; --card: #ffffff; --line: #dfe2e6; --ink: #22262b; --soft: #5d646d;
  --blue: #0072b2; --orange: #b97c00; --good: #00734f; --bad: #b43f00; --track: #e9ebee;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1d2125; --line: #343a40; --ink: #e6e8ea; --soft: #a0a8b0;
    --blue: #56b4e9; --orange: #e69f00; --good: #3fc59a; --bad: #ff9a5c; --track: #2b3035;
  }
  figure img { filter: invert(0.9) hue-rotate(180deg) brightness(1.25); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main, header { max-width: 1240px; margin: 0 auto; padding: 0 16px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; padding-top: 16px; }
h1 { font-size: 20px; margin: 0; }
h2 { font-size: 15px; margin: 26px 0 8px; }
#state { font-weight: 650; padding: 1px 11px; border: 1.5px solid currentColor; border-radius: 99px; }
#state.good { color: var(--good); } #state.bad { color: var(--bad); } #state.soft { color: var(--soft); }
#age { color: var(--soft); }
#warnings { list-style: none; margin: 12px 0 0; padding: 0; }
#warnings li { border-left: 4px solid var(--bad); background: var(--card); padding: 8px 12px; margin-top: 6px;
  overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 10px;
  margin-top: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px;
  min-width: 0; }
.card .name { color: var(--soft); font-size: 13px; }
.card .value { font-size: 23px; font-weight: 650; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.card .note { color: var(--soft); font-size: 12.5px; overflow-wrap: anywhere; min-height: 1.45em; }
.bar { display: grid; grid-template-columns: 84px 1fr 58px; gap: 10px; align-items: center; margin: 5px 0; }
.bar .track { background: var(--track); border-radius: 4px; height: 13px; overflow: hidden; }
.bar .fill { background: var(--blue); height: 100%; transition: width 0.4s; }
.bar.flat .fill { background: var(--soft); } .bar.popularity .fill { background: var(--orange); }
.bar .share { text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 12px; border-top: 1px solid var(--line); white-space: nowrap; }
tr:first-child > * { border-top: 0; }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child { text-align: left; }
td.bad { color: var(--bad); font-weight: 650; }
#all td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 120px; }
#pictures { display: grid; gap: 12px; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); }
figure { margin: 0; overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 8px; }
figure img { display: block; width: 100%; min-width: 560px; height: auto; }
figcaption { position: sticky; left: 0; color: var(--soft); font-size: 13px; padding: 2px 4px 6px; }
a { color: var(--blue); }
details { margin-top: 22px; }
summary { cursor: pointer; padding-bottom: 8px; }
footer { color: var(--soft); font-size: 13px; padding: 22px 0; }
[hidden] { display: none !important; }
"""

_SCRIPT = """
"use strict";
const STATUS_MS = 3000, PICTURES_MS = 15000, PATIENCE_MS = 10000, OLD_NEWS_S = 60;
const RETRIEVERS = ["index", "flat", "popularity"];
const CAPTIONS = {
  "recall.png": "Recall over time",
  "index-occupancy.png": "Occupancy of the index",
  "index-flows.png": "What moved between the last two versions",
  "index-churn.png": "Births, moves and deaths over time",
  "index-balance.png": "Balance over time",
};
const FAILURES = ["error", "missed", "max_instances", "overdue"];
const byId = (id) => document.getElementById(id);
const known = (value) => typeof value === "number" && Number.isFinite(value);
const count = (value) => known(value) ? Math.round(value).toLocaleString("en") : "unknown";
const decimals = (value, digits) => known(value) ? value.toFixed(digits) : "unknown";
const share = (value) => known(value) ? (100 * value).toFixed(1) + " %" : "unknown";
const utc = (ms) => new Date(ms).toISOString().slice(0, 16).replace("T", " ");

function make(tag, className, parent) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  parent.append(node);
  return node;
}
// Writing what is there already would lose a selection and make the page flicker.
function put(node, text) { if (node.textContent !== text) node.textContent = text; }

function lasting(seconds) {
  if (seconds < 120) return Math.round(seconds) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  return seconds < 172800 ? (seconds / 3600).toFixed(1) + " h" : (seconds / 86400).toFixed(1) + " days";
}

// -- cards: name, value, note; a value that is null leaves the card out ------------------------------------
const CARDS = {
  rate: (s) => ["events a second", count(s.events_per_s), count(s.events_trained) + " trained"],
  lag: (s) => ["lag", count(s.lag_messages), "messages to the end of the log"],
  watermark: (s) => ["data until", s.watermark_ms > 0 ? utc(s.watermark_ms).slice(11) : null,
    s.watermark_ms > 0 ? utc(s.watermark_ms).slice(0, 10) + ", event time in UTC" : ""],
  items: (s) => ["items", count(s.index_items), known(s.users) ? count(s.users) + " users" : ""],
  nodes: (s) => ["nodes in use", known(s.index_nodes) ? count(s.index_nodes_used) + " of "
    + count(s.index_nodes) : null, known(s.index_max_over_mean)
    ? "largest " + decimals(s.index_max_over_mean, 1) + " times the mean" : "not started yet"],
  churn: (s) => ["moves per 1,000 events", recentMoves(s), count(s.index_moved) + " moves in all"],
  scored: (s) => ["items scored a search", known(s.scored_fraction) ? share(s.scored_fraction) : null,
    "of those in the index"],
  ne: (s) => ["normalized entropy", known(s.ne) ? decimals(s.ne, 3) : "none", known(s.calibration)
    ? "calibration " + decimals(s.calibration, 2) : "needs events without a click"],
  versions: (s) => ["newest version", s.versions?.length ? "" + s.versions.at(-1) : "none yet",
    count(s.versions?.length || 0) + " in this life, " + count(s.versions_pending || 0) + " waiting"],
  rejected: (s) => ["rejected", count(s.events_rejected || 0), Object.entries(s.rejected || {})
    .map(([reason, times]) => reason + " " + count(times)).join(", ")],
  checkpoint: (s) => ["checkpoint",
    s.checkpoint ? "step " + count(Number(s.checkpoint.split("-")[1])) : "none yet",
    known(s.checkpoint_stall_s) ? "held training up for " + decimals(s.checkpoint_stall_s, 2) + " s" : ""],
};
const cards = {};
function showCards(status) {
  for (const [key, describe] of Object.entries(CARDS)) {
    const [name, value, note] = describe(status);
    if (!cards[key]) {
      const card = make("div", "card", byId("cards"));
      cards[key] = { card, parts: ["name", "value", "note"].map((part) => make("div", part, card)) };
    }
    cards[key].card.hidden = value === null;
    [name, value || "", note].forEach((text, at) => put(cards[key].parts[at], text));
  }
}

const seen = [];
function recentMoves(status) {
  seen.push([status.events_trained, status.index_moved]);
  if (seen.length > 20) seen.shift();
  const events = status.events_trained - seen[0][0], moved = status.index_moved - seen[0][1];
  if (events < 0 || moved < 0) seen.length = 0;
  return events > 0 && moved >= 0 ? count(1000 * moved / events) : "…";
}

// -- recall ------------------------------------------------------------------------------------------------
function showRecall(status) {
  const found = Object.keys(status).map((key) => /^recall_index_at_([0-9]+)$/.exec(key)).filter(Boolean);
  byId("recall").hidden = !found.length;
  if (!found.length) return;
  const k = found[0][1], values = RETRIEVERS.map((of) => status["recall_" + of + "_at_" + k]);
  const longest = Math.max(...values.filter(known), 1e-9);
  put(byId("recall-title"), "Recall@" + k + ", each answer given before its event was learnt");
  RETRIEVERS.forEach((of, at) => {
    const row = byId("recall-" + of);
    row.hidden = !known(values[at]);
    row.querySelector(".fill").style.width = known(values[at]) ? 100 * values[at] / longest + "%" : "0";
    put(row.querySelector(".share"), share(values[at]));
  });
  const [through, flat] = values;
  put(byId("recall-note"), flat > 0 ? "The index keeps " + share(through / flat) + " of flat recall." : "");
}

// -- tables ------------------------------------------------------------------------------------------------
function fill(table, rows, mark) {
  while (table.rows.length > rows.length) table.deleteRow(-1);
  rows.forEach((cells, at) => {
    const row = table.rows[at] || table.insertRow();
    while (row.cells.length > cells.length) row.deleteCell(-1);
    cells.forEach((text, column) => {
      const cell = row.cells[column] || make(at === 0 && mark ? "th" : "td", "", row);
      put(cell, text);
      if (mark) cell.classList.toggle("bad", mark(at, column, text));
    });
  });
}
function showJobs(jobs) {
  const names = Object.keys(jobs || {});
  byId("jobs").hidden = !names.length;
  if (!names.length) return;
  const kinds = [...new Set(names.flatMap((name) => Object.keys(jobs[name])))];
  const cell = (value, kind) => kind.endsWith("_s") ? decimals(value, 2) + " s" : count(value);
  const titles = kinds.map((kind) => kind.replace(/_s$/, "").replaceAll("_", " "));
  const rows = names.map((name) => [name, ...kinds.map((kind) => cell(jobs[name][kind] || 0, kind))]);
  fill(byId("jobs-table"), [["job", ...titles], ...rows],
    (row, column, text) => row > 0 && FAILURES.includes(kinds[column - 1]) && text !== "0");
}
function showAll(status) {
  const plain = (value) => typeof value === "string" ? value : JSON.stringify(value);
  fill(byId("all"), Object.keys(status).sort().map((key) => [key, plain(status[key])]));
}

// -- state and warnings ------------------------------------------------------------------------------------
let last = null;
function showState(problem, serverMs) {
  const status = last || {};
  const age = known(status.at_ms) && known(serverMs) ? Math.max(0, (serverMs - status.at_ms) / 1000) : null;
  const [word, mood] = problem ? ["no answer", "bad"] : !last ? ["starting", "soft"]
    : status.running === false ? ["stopped", "soft"] : age > OLD_NEWS_S ? ["no news", "bad"]
    : status.events_per_s > 0 ? ["training", "good"] : ["idle", "soft"];
  put(byId("state"), word);
  byId("state").className = mood;
  put(byId("age"), [known(status.seconds) ? "up " + lasting(status.seconds) : "",
    age === null ? "" : "status " + lasting(age) + " old"].filter(Boolean).join(", "));
  const warnings = [];
  if (problem) warnings.push("The daemon does not answer (" + problem + ")."
    + (last ? " What stands below is the last that it said." : ""));
  if (word === "no news") warnings.push("No status for " + lasting(age) + ": see /healthz and the log.");
  if (status.publish_error) warnings.push("Registry: " + status.publish_error);
  fillList(byId("warnings"), warnings);
}
function fillList(list, lines) {
  while (list.children.length > lines.length) list.lastChild.remove();
  lines.forEach((line, at) => put(list.children[at] || make("li", "", list), line));
}

// -- pictures: a new edition takes the place of the old one when it has arrived ----------------------------
const hung = {};
async function showPictures() {
  const reply = await ask("/pictures");
  for (const [name, edition] of Object.entries(await reply.json())) {
    if (!hung[name]) {
      const figure = make("figure", "", byId("pictures"));
      hung[name] = { edition: 0, caption: make("figcaption", "", figure), link: make("a", "", figure) };
      put(hung[name].caption, (CAPTIONS[name] || name) + ": being drawn");
    }
    if (hung[name].edition !== edition) await hang(name, edition);
  }
}
function hang(name, edition) {
  const next = new Image(), { caption, link } = hung[name], title = CAPTIONS[name] || name;
  next.alt = title;
  link.href = "/pictures/" + encodeURIComponent(name);
  next.src = link.href + "?edition=" + edition;
  return next.decode().then(() => {
    hung[name].edition = edition;
    link.replaceChildren(next);
    put(caption, title);
  }, () => put(caption, title + ": cannot be loaded now"));
}

// -- asking ------------------------------------------------------------------------------------------------
async function ask(path) {
  const reply = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!reply.ok) throw new Error(path + " says " + reply.status);
  return reply;
}
async function turn() {
  try {
    const reply = await ask("/status"), status = await reply.json();
    if (Object.keys(status).length) {
      last = status;
      byId("live").hidden = false;
      showCards(status); showRecall(status); showJobs(status.jobs); showAll(status);
    }
    showState(null, Date.parse(reply.headers.get("Date")));
  } catch (error) {
    showState(error.message, null);
  }
}
// A page in a hidden tab asks for nothing.
function repeat(job, everyMs) {
  const again = () => (document.hidden ? Promise.resolve() : job().catch(() => {}))
    .then(() => setTimeout(again, everyMs));
  again();
}
repeat(turn, STATUS_MS);
repeat(showPictures, PICTURES_MS);
"""

_BODY = """
<header><h1>HSNN pipeline</h1><span id="state" class="soft" role="status">asking</span>
<span id="age"></span></header>
<main>
<noscript><p>This page needs JavaScript. The same figures are at <a href="/status">/status</a>.</p></noscript>
<ul id="warnings" role="alert"></ul>
<div id="live" hidden>
<div id="cards" class="cards"></div>
<section id="recall" hidden><h2 id="recall-title"></h2><div class="card">
<div id="recall-index" class="bar index"><span>index</span><div class="track"><div class="fill"></div></div>
<span class="share"></span></div>
<div id="recall-flat" class="bar flat"><span>flat</span><div class="track"><div class="fill"></div></div>
<span class="share"></span></div>
<div id="recall-popularity" class="bar popularity"><span>popularity</span><div class="track">
<div class="fill"></div></div><span class="share"></span></div>
<div id="recall-note" class="note"></div></div></section>
<section id="jobs" hidden><h2>Scheduler</h2><div class="wide"><table id="jobs-table"></table></div></section>
</div>
<section><h2>Pictures</h2><div id="pictures"></div></section>
<details><summary>Every figure</summary>
<div class="wide"><table id="all"></table></div></details>
<footer><a href="/status">status</a> · <a href="/metrics">metrics</a> · <a href="/healthz">health</a></footer>
</main>
"""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


PAGE = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>HSNN pipeline</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{_STYLE}</style></head><body>{_BODY}<script>{_SCRIPT}</script></body></html>
""".encode()

CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; base-uri 'none'; form-action 'none'; connect-src 'self'; img-src 'self' data:; "
    f"script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}"
)
"""Our own style and script and nothing else, from nowhere else."""
