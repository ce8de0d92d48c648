"use strict";
// Served by two backends, the training daemon and the retrieval server. What only one of them tells is shown
// where it is told. Text is set as text, never as markup; the charting library is given our own words and
// numbers only, since it reads some markup in labels.
const LIVE_MS = 3000, SLOW_MS = 15000, PATIENCE_MS = 12000, OLD_NEWS_S = 60, WINDOW_MS = 60000;
const BACKEND = document.body.dataset.backend, IS_DAEMON = BACKEND === "daemon";
const MEMBERS = 50, NODES = 256, SHOWN_NODES = 8;

const byId = (id) => document.getElementById(id);
const known = (value) => typeof value === "number" && Number.isFinite(value);
const count = (value) => known(value) ? Math.round(value).toLocaleString("en") : "unknown";
const decimals = (value, digits) => known(value) ? value.toFixed(digits) : "unknown";
const share = (value, digits = 1) => known(value) ? (100 * value).toFixed(digits) + " %" : "unknown";
const signed = (value) => known(value) ? (value > 0 ? "+" : "") + value.toFixed(3) : "";
const utc = (ms) => new Date(ms).toISOString().slice(0, 16).replace("T", " ");
const milliseconds = (s) => known(s) ? (1000 * s).toFixed(1) + " ms" : "unknown";

function lasting(seconds) {
  if (seconds < 120) return Math.round(seconds) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  return seconds < 172800 ? (seconds / 3600).toFixed(1) + " h" : Math.round(seconds / 86400).toLocaleString("en") + " days";
}
function make(tag, className, parent, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}
// Writing what is there already would lose a selection and make the page flicker.
function put(node, text) { if (node.textContent !== text) node.textContent = text; }
function link(parent, text, act, title) {
  const button = make("button", "link", parent, text);
  button.type = "button";
  if (title) button.title = title;
  button.addEventListener("click", act);
  return button;
}
function notice(node, text, isBad = false) {
  node.hidden = !text;
  put(node, text || "");
  node.classList.toggle("bad", isBad);
}

// -- asking ------------------------------------------------------------------------------------------------
class Refused extends Error {
  constructor(code, message) { super(message); this.code = code; }
}
async function ask(path, body) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: "Bearer " + token } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let reply;
  try {
    reply = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body,
      signal: AbortSignal.timeout(PATIENCE_MS) });
  } catch (error) {
    throw new Refused(0, "the " + BACKEND + " does not answer (" + error.message + ")");
  }
  if (reply.status === 401) byId("token").hidden = false;
  if (!reply.ok) throw new Refused(reply.status, await reason(reply));
  return reply;
}
async function reason(reply) {
  const text = (await reply.text()).trim();
  try { return JSON.parse(text).detail || text; } catch { return text || "status " + reply.status; }
}
// Ids have 64 bits, numbers here 53: longer ones stay text.
function readJson(text) {
  return JSON.parse(text, (key, value, context) => typeof value === "number" && !Number.isSafeInteger(value)
    && /^-?[0-9]+$/.test(context?.source || "") ? context.source : value);
}
const askJson = async (path, body) => readJson(await (await ask(path, body)).text());
byId("token").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", byId("token-text").value.trim());
  byId("token").hidden = true;
  turn();
  showNode();
});

// -- tables: cells are text, or what makes their content ---------------------------------------------------
function fill(table, head, rows) {
  table.replaceChildren();
  const columns = head.map((title) => typeof title === "string" ? { title } : title);
  const first = make("tr", "", make("thead", "", table));
  columns.forEach((column) => { make("th", column.text || "", first, column.title).scope = "col"; });
  const body = make("tbody", "", table);
  for (const cells of rows) {
    const row = make("tr", "", body);
    cells.forEach((cell, at) => {
      const place = make("td", columns[at].text || "", row);
      if (typeof cell === "function") cell(place); else place.textContent = cell;
    });
  }
}
const shownBefore = new Map();
// A table that says the same is left alone, with its focus and its scroll.
function refill(table, head, rows) {
  const said = JSON.stringify([head, rows]);
  if (shownBefore.get(table) === said) return;
  shownBefore.set(table, said);
  fill(table, head, rows);
}
const pointed = (mood, text) => (place) => { place.className = mood; place.textContent = text; };

// -- cards: name, value, note; a value that is null leaves the card out ------------------------------------
function showCards(place, described) {
  described = described.filter(([, value]) => value !== null && value !== undefined);
  while (place.children.length > described.length) place.lastChild.remove();
  described.forEach((parts, at) => {
    const card = place.children[at] || make("div", "card", place);
    ["name", "value", "note"].forEach((part, n) => put(card.children[n] || make("div", part, card), parts[n] || ""));
  });
}

// -- live: the daemon --------------------------------------------------------------------------------------
function daemonCards(s) {
  return [
    ["events a second", count(s.events_per_s), count(s.events_trained) + " trained"],
    ["lag", count(s.lag_messages), "messages to the end of the log"],
    ["data until", s.watermark_ms > 0 ? utc(s.watermark_ms).slice(11) : null,
      s.watermark_ms > 0 ? utc(s.watermark_ms).slice(0, 10) + ", event time in UTC" : ""],
    ["items", count(s.index_items), known(s.users) ? count(s.users) + " users" : ""],
    ["nodes in use", known(s.index_nodes) ? count(s.index_nodes_used) + " of " + count(s.index_nodes) : null,
      known(s.index_max_over_mean) ? "largest " + decimals(s.index_max_over_mean, 1) + " times the mean"
        : "not started yet"],
    ["moves per 1,000 events", recentMoves(s), count(s.index_moved) + " moves in all"],
    ["items scored a search", known(s.scored_fraction) ? share(s.scored_fraction) : null, "of those in the index"],
    ["normalized entropy", known(s.ne) ? decimals(s.ne, 3) : "none", known(s.calibration)
      ? "calibration " + decimals(s.calibration, 2) : "needs events without a click"],
    ["newest version", s.versions?.length ? "" + s.versions.at(-1) : "none yet",
      count(s.versions?.length || 0) + " in this life, " + count(s.versions_pending || 0) + " waiting"],
    ["rejected", count(s.events_rejected || 0), Object.entries(s.rejected || {})
      .map(([why, times]) => why + " " + count(times)).join(", ")],
    ["checkpoint", s.checkpoint ? "step " + count(Number(s.checkpoint.split("-")[1])) : "none yet",
      known(s.checkpoint_stall_s) ? "held training up for " + decimals(s.checkpoint_stall_s, 2) + " s" : ""],
    ["deltas", known(s.deltas_written) ? count(s.deltas_written) : null,
      known(s.delta_bytes) ? "the last of " + count(s.delta_bytes) + " bytes" : ""],
  ];
}
const seen = [];
function recentMoves(status) {
  seen.push([status.events_trained, status.index_moved]);
  if (seen.length > 20) seen.shift();
  const events = status.events_trained - seen[0][0], moved = status.index_moved - seen[0][1];
  if (events < 0 || moved < 0) seen.length = 0;
  return events > 0 && moved >= 0 ? count(1000 * moved / events) : "…";
}
const RETRIEVERS = ["index", "flat", "popularity"];
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
const FAILURES = ["error", "missed", "max_instances", "overdue"];
function showJobs(jobs) {
  const names = Object.keys(jobs || {});
  byId("jobs").hidden = !names.length;
  const kinds = [...new Set(names.flatMap((name) => Object.keys(jobs[name])))];
  const cell = (value, kind) => kind.endsWith("_s") ? decimals(value, 2) + " s" : count(value);
  const titles = kinds.map((kind) => kind.replace(/_s$/, "").replaceAll("_", " "));
  fill(byId("jobs-table"), ["job", ...titles], names.map((name) => [name, ...kinds.map((kind) => {
    const value = jobs[name][kind] || 0, text = cell(value, kind);
    return FAILURES.includes(kind) && value ? pointed("bad", text) : text;
  })]));
}
function showGate(gate) {
  const results = Object.entries(gate?.results || {}).map(([result, times]) => count(times) + " " + result.replaceAll("_", " "));
  const trial = known(gate?.version) ? "Version " + gate.version + " is on " + gate.phase + " against "
    + (gate.against ?? "nobody") + ": " + count(gate.events) + " of at most " + count(gate.max_events) + " events." : "";
  const text = [trial, results.length ? "In this life: " + results.join(", ") + "." : "", gate?.error || ""];
  put(byId("gate"), text.filter(Boolean).join(" "));
  byId("gate").hidden = !byId("gate").textContent;
}
function showAll(status) {
  byId("all-box").hidden = false;
  const plain = (value) => typeof value === "string" ? value : JSON.stringify(value);
  refill(byId("all"), ["figure", "value"], Object.keys(status).sort().map((key) => [key, plain(status[key])]));
}
async function daemonTurn() {
  const reply = await ask("/status"), status = readJson(await reply.text());
  if (Object.keys(status).length) {
    showCards(byId("cards"), daemonCards(status));
    showRecall(status); showJobs(status.jobs); showGate(status.gate); showAll(status);
  }
  const nowMs = Date.parse(reply.headers.get("Date"));
  const age = known(status.at_ms) && known(nowMs) ? Math.max(0, (nowMs - status.at_ms) / 1000) : null;
  const [word, mood] = age === null ? ["starting", "soft"] : status.running === false ? ["stopped", "soft"]
    : age > OLD_NEWS_S ? ["no news", "bad"] : status.events_per_s > 0 ? ["training", "good"] : ["idle", "soft"];
  const warnings = [];
  if (word === "no news") warnings.push("No status for " + lasting(age) + ": see /healthz and the log.");
  for (const [key, what] of [["publish_error", "Registry"], ["source_error", "Source"], ["checkpoint_error", "Checkpoint"]])
    if (status[key]) warnings.push(what + ": " + status[key]);
  return { word, mood, warnings, age: [known(status.seconds) ? "up " + lasting(status.seconds) : "",
    age === null ? "" : "status " + lasting(age) + " old"].filter(Boolean).join(", ") };
}

// -- live: the server --------------------------------------------------------------------------------------
// Requests and their times come from the server's own metrics: counts in buckets, over the last minute.
const samples = [];
function readMetrics(text) {
  const found = { requests: 0, failed: 0, retrieve: new Map(), search: new Map() };
  const add = (map, le, value) => map.set(le, (map.get(le) || 0) + value);
  for (const line of text.split("\n")) {
    const match = /^(\w+)\{?([^}]*)\}? ([^ ]+)$/.exec(line);
    if (!match) continue;
    const [, name, labels, value] = match, label = (of) => new RegExp("(?:^|,)" + of + '="([^"]*)"').exec(labels)?.[1];
    if (label("route") === "/v1/retrieve") {
      if (name === "hsnn_serve_request_duration_seconds_count") {
        found.requests += Number(value);
        if (label("code") >= "500") found.failed += Number(value);
      } else if (name === "hsnn_serve_request_duration_seconds_bucket") add(found.retrieve, label("le"), Number(value));
    } else if (name === "hsnn_serve_search_seconds_bucket") add(found.search, label("le"), Number(value));
  }
  return found;
}
function quantile(q, now, before) {
  const edges = [...now.keys()].map((le) => [le === "+Inf" ? Infinity : Number(le), now.get(le) - (before.get(le) || 0)])
    .sort((a, b) => a[0] - b[0]);
  const wanted = q * (edges.at(-1)?.[1] || 0);
  if (!wanted) return null;
  let [low, below] = [0, 0];
  for (const [edge, upTo] of edges) {
    if (upTo >= wanted) return edge === Infinity ? low : low + (edge - low) * (wanted - below) / (upTo - below);
    [low, below] = [edge, upTo];
  }
  return null;
}
function serverCards(model, nowMs) {
  const [first, last] = [samples[0], samples.at(-1)], seconds = (last.at - first.at) / 1000;
  const [requests, failed] = [last.requests - first.requests, last.failed - first.failed];
  const q = (p, of) => quantile(p, last[of], first[of]);
  const behind = known(nowMs) && model.watermark_ms > 0 ? (nowMs - model.watermark_ms) / 1000 : null;
  const p50 = q(0.5, "retrieve");
  return [
    ["version", model.version, model.alias === null ? "fixed" : "@" + model.alias + " is " + (model.wanted ?? "no version")],
    ["data until", model.watermark_ms > 0 ? utc(model.watermark_ms).slice(11) : "none",
      model.watermark_ms > 0 ? utc(model.watermark_ms).slice(0, 10) + ", " + lasting(behind) + " ago" : ""],
    ["requests a second", seconds > 0 ? (requests / seconds).toFixed(requests / seconds < 10 ? 1 : 0) : "…",
      count(last.requests) + " to /v1/retrieve" + (failed > 0 ? ", " + count(failed) + " failed lately" : "")],
    ["request p50", p50 === null ? "none" : milliseconds(p50),
      p50 === null ? "in the last minute" : "p99 " + milliseconds(q(0.99, "retrieve")) + ", last minute"],
    ["search p50", q(0.5, "search") === null ? null : milliseconds(q(0.5, "search")),
      "p99 " + milliseconds(q(0.99, "search")) + " a batch"],
    ["items", count(model.items), count(model.users) + " users"],
    ["nodes", model.nodes.map(count).join(" × "), "epoch " + count(model.epoch)],
    ["trained", count(model.events_trained), "events, step " + count(model.step)],
    ["swaps", count(model.swaps), known(model.swap_s) ? "the last took " + decimals(model.swap_s, 2) + " s" : ""],
  ];
}
async function serverTurn() {
  const metrics = readMetrics(await (await ask("/metrics")).text());
  samples.push({ at: performance.now(), ...metrics });
  if (samples.at(-2)?.requests > metrics.requests) samples.splice(0, samples.length - 1);
  while (samples.length > 2 && samples.at(-1).at - samples[0].at > WINDOW_MS) samples.shift();
  try {
    const reply = await ask("/v1/model"), model = readJson(await reply.text());
    showCards(byId("cards"), serverCards(model, Date.parse(reply.headers.get("Date"))));
    showAll(model);
    return { word: "serving", mood: model.problems.length ? "bad" : "good", warnings: model.problems,
      age: "version " + model.version + ", epoch " + count(model.epoch) };
  } catch (error) {
    if (error.code !== 503) throw error;
    return { word: "not ready", mood: "bad", warnings: [error.message], age: "" };
  }
}

// -- live: both --------------------------------------------------------------------------------------------
let hasAnswered = false, wasAway = false, isIndexAway = false;
async function turn() {
  let told;
  try {
    told = await (IS_DAEMON ? daemonTurn() : serverTurn());
    if (told.word !== "not ready") {
      hasAnswered = true;
      if (wasAway) showVersions();
      if (isIndexAway) showNode();
      wasAway = false;
    }
  } catch (error) {
    wasAway = true;
    const stale = hasAnswered ? " What stands below is the last that it said." : "";
    told = error.code === 401 ? { word: "closed", mood: "bad", warnings: [], age: "" }
      : { word: "no answer", mood: "bad", age: "", warnings: [upper(error.message) + "." + stale] };
  }
  put(byId("state"), told.word);
  byId("state").className = told.mood;
  put(byId("age"), told.age);
  const list = byId("warnings");
  while (list.children.length > told.warnings.length) list.lastChild.remove();
  told.warnings.forEach((line, at) => put(list.children[at] || make("li", "", list), line));
}
const upper = (text) => text.charAt(0).toUpperCase() + text.slice(1);

const MOODS = { promoted: "good", refused: "bad", rolled_back: "bad" };
async function showVersions() {
  let report;
  try {
    report = await askJson("/v1/versions");
  } catch {
    return;  // What is away is said by the live part.
  }
  byId("versions").hidden = !report.versions.length && !report.error;
  notice(byId("versions-error"), report.error ? "The registry is away, these were last heard of: " + report.error : "", true);
  const said = JSON.stringify(report);
  if (shownBefore.get("versions") === said) return;
  shownBefore.set("versions", said);
  fill(byId("versions-table"), ["version", { title: "gate", text: "text" }, { title: "why", text: "text prose" }, "recall", "flat", "NE", "events",
    "data until"], report.versions.map((v) => [
    (place) => { place.textContent = v.version; for (const alias of v.aliases) make("span", "soft", place, " @" + alias); },
    (place) => { make("span", MOODS[v.gate_result] || "soft", place, (v.gate_result || "none").replaceAll("_", " ")); },
    v.gate_reason || "", known(v.recall_index) ? share(v.recall_index) : "", known(v.recall_flat) ? share(v.recall_flat) : "",
    known(v.ne) ? decimals(v.ne, 3) : "", v.events ? count(Number(v.events)) : "", (v.data_until || "").slice(0, 16).replace("T", " "),
  ]));
}

// -- pictures of the daemon: a new edition takes the place of the old one when it has arrived ---------------
const CAPTIONS = {
  "recall.png": "Recall over time",
  "index-occupancy.png": "Occupancy of the index",
  "index-flows.png": "What moved between the last two versions",
  "index-churn.png": "Births, moves and deaths over time",
  "index-balance.png": "Balance over time",
};
const hung = {};
async function showPictures() {
  const editions = await askJson("/pictures");
  byId("pictures-box").hidden = !Object.keys(editions).length;
  if (!byId("pictures-box").open) return;
  for (const [name, edition] of Object.entries(editions)) {
    if (!hung[name]) {
      const figure = make("figure", "", byId("pictures"));
      hung[name] = { edition: 0, caption: make("figcaption", "", figure), link: make("a", "", figure) };
      put(hung[name].caption, (CAPTIONS[name] || name) + ": being drawn");
    }
    if (hung[name].edition !== edition) await hang(name, edition);
  }
}
function hang(name, edition) {
  const next = new Image(), { caption, link: anchor } = hung[name], title = CAPTIONS[name] || name;
  next.alt = title;
  anchor.href = "/pictures/" + encodeURIComponent(name);
  next.src = anchor.href + "?edition=" + edition;
  return next.decode().then(() => {
    hung[name].edition = edition;
    anchor.replaceChildren(next);
    put(caption, title);
  }, () => put(caption, title + ": cannot be loaded now"));
}
byId("pictures-box").addEventListener("toggle", () => showPictures().catch(() => {}));

// -- index: where we are is in the address, so that going back works ----------------------------------------
const COLOURS = {
  // Popularity is spread over orders of magnitude; colours follow its logarithm.
  popularity: { title: "popularity per item", scale: Math.log, of: (n) => n.items ? n.popularity / n.items : null, say: (v) => share(v, 4) },
  similarity: { title: "likeness of items and node", of: (n) => n.similarity, say: (v) => decimals(v, 3) },
  drift: { title: "came or left since the last version", of: (n) => known(n.came) && n.items
    ? (n.came + n.left) / n.items : null, say: (v) => share(v) },
};
let shown = null, asked = 0;
const nodeInAddress = () => (/^#node=([0-9/]*)$/.exec(location.hash) || [null, shown?.node || ""])[1];
const goTo = (node) => { location.hash = "node=" + node; };
const nodePath = (node) => "/v1/index" + (node ? "/" + node : "");
window.addEventListener("hashchange", () => {
  if (!location.hash.startsWith("#node=")) return;
  showNode().then(() => byId("index").scrollIntoView({ block: "nearest" }));
});

async function showNode(offset = 0, isQuiet = false) {
  const node = nodeInAddress(), turnNumber = ++asked;
  if (!isQuiet) byId("map-box").classList.add("waiting");
  let found;
  try {
    const limit = shown?.is_leaf && shown.node === node ? MEMBERS : NODES;
    found = await askJson(nodePath(node) + "?limit=" + limit + "&offset=" + offset);
    if (found.is_leaf && found.entries.length > MEMBERS)
      found = { ...found, entries: found.entries.slice(0, MEMBERS), next_offset: offset + MEMBERS };
  } catch (error) {
    if (turnNumber !== asked) return;
    isIndexAway = true;
    if (error.code === 404 && node) { shown = null; goTo(""); return; }
    byId("index").hidden = error.code === 404;
    notice(byId("index-notice"), "The index cannot be shown now: " + error.message + ".", true);
    return;
  }
  isIndexAway = false;
  if (turnNumber !== asked) return;  // Somebody has gone on meanwhile.
  notice(byId("index-notice"), found.is_ready ? "" : "The index is not filled yet: every search scores all items.");
  byId("index-body").hidden = !found.is_ready;
  shown = found;
  showCrumbs(found); showIndexNote(found); showEntries(found); showExamples(found);
  byId("map-box").hidden = found.is_leaf;
  byId("colour-choice").hidden = found.is_leaf;
  if (!found.is_leaf && found.is_ready) await drawMap(found);
}
function showCrumbs(found) {
  const parts = found.node ? found.node.split("/") : [], list = byId("crumbs");
  list.replaceChildren();
  ["all items", ...parts].forEach((part, at) => {
    const place = make("li", "", list), text = at ? "node " + part : part, isHere = at === parts.length;
    if (isHere) make("span", "", place, text).setAttribute("aria-current", "location");
    else link(place, text, () => goTo(parts.slice(0, at).join("/")));
  });
}
function showIndexNote(found) {
  const drift = known(found.came) ? count(found.came) + " came and " + count(found.left) + " left since the last version" : "";
  put(byId("index-note"), [count(found.items) + " items", "popularity " + share(found.popularity),
    known(found.similarity) ? "likeness " + decimals(found.similarity, 3) : "", drift,
    "levels of " + found.levels.map(count).join(" and ") + " nodes", "version " + found.version].filter(Boolean).join(" · "));
}
function showEntries(found) {
  const table = byId("entries");
  if (found.is_leaf) {
    fill(table, [{ title: "item", text: "text" }, "popularity", "events", "first met", "last met", "likeness", { title: "features", text: "text prose" }],
      found.entries.map((m) => [(place) => { link(place, "" + m.item_id, () => showItem(m.item_id)); }, share(m.popularity, 3),
        count(m.events), lasting(m.age_ms / 1000) + " ago", lasting(m.idle_ms / 1000) + " ago", decimals(m.similarity, 3),
        features(m.features)]));
  } else {
    const drift = found.has_drift ? ["came", "left"] : [];
    fill(table, ["node", "items", "popularity", "likeness", ...drift], found.entries.map((n) => [
      (place) => { link(place, "node " + n.node, () => goTo(n.node)); }, count(n.items), share(n.popularity, 2),
      known(n.similarity) ? decimals(n.similarity, 3) : "", ...drift.map((of) => count(n[of]))]));
  }
  byId("entries-box").scrollTop = 0;
  const last = found.offset + found.entries.length;
  put(byId("shown"), found.total ? (found.offset + 1) + " to " + count(last) + " of " + count(found.total)
    + (found.is_leaf ? " items, most popular first" : " nodes, largest first") : "Nothing is in here.");
  byId("before").hidden = !found.offset;
  byId("more").hidden = found.next_offset === null;
}
// Values other than numbers are kept as hashes, so there is only their count to show.
const features = (f) => [...Object.entries(f.numbers).map(([name, value]) => name + " " + value),
  ...Object.entries(f.values).map(([name, times]) => "has " + name + (times > 1 ? " × " + times : ""))].join(", ");
byId("more").addEventListener("click", () => showNode(shown.next_offset));
byId("before").addEventListener("click", () => showNode(Math.max(0, shown.offset - (shown.is_leaf ? MEMBERS : NODES))));

// -- index: the picture ------------------------------------------------------------------------------------
let charts = null;
function loadCharts() {
  charts ??= new Promise((loaded, failed) => {
    const script = make("script", "", document.head);
    script.integrity = document.body.dataset.chartsIntegrity;
    script.onload = () => loaded(window.Plotly);
    script.onerror = () => { charts = null; script.remove(); failed(new Error("the charting library did not load")); };
    script.src = document.body.dataset.charts;
  });
  return charts;
}
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
async function drawMap(found) {
  const box = byId("map"), colour = COLOURS[byId("colour").value] || COLOURS.popularity;
  const nodes = found.entries.filter((n) => n.items > 0), values = nodes.map(colour.of);
  const scale = colour.scale || ((value) => value), there = values.filter(known);
  showLegend(colour, there);
  try {
    const Plotly = await loadCharts();
    if (shown !== found) return;
    const trace = {
      type: "treemap", ids: nodes.map((n) => n.node), labels: nodes.map((n) => n.node), parents: nodes.map(() => ""),
      values: nodes.map((n) => n.items), customdata: nodes.map((n, at) => [share(n.popularity, 2),
        known(n.similarity) ? decimals(n.similarity, 3) : "unknown", known(values[at]) ? colour.say(values[at]) : "unknown"]),
      texttemplate: "%{label}<br>%{value:,}", pathbar: { visible: false }, tiling: { pad: 0 },
      hovertemplate: "node %{label}: %{value:,} items<br>popularity %{customdata[0]}<br>likeness %{customdata[1]}<br>"
        + colour.title + ": %{customdata[2]}<extra></extra>",
      marker: { colors: values.map((v) => scale(v ?? Math.min(...there))), colorscale: [[0, ink("--low")], [1, ink("--high")]], showscale: false,
        line: { width: 1.5, color: ink("--card") }, pad: { t: 0, r: 0, b: 0, l: 0 } },
    };
    const layout = { margin: { t: 0, r: 0, b: 0, l: 0 }, paper_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", size: 13 },
      uniformtext: { minsize: 9, mode: "hide" } };
    await Plotly.react(box, [trace], layout, { displayModeBar: false, responsive: true });
    box.removeAllListeners?.("plotly_treemapclick");
    box.on("plotly_treemapclick", (event) => { goTo(event.points[0].id); return false; });
    notice(byId("map-notice"), "");
  } catch (error) {
    notice(byId("map-notice"), "There is no picture: " + error.message + ". The table below says the same.");
  } finally {
    byId("map-box").classList.remove("waiting");
  }
}
function showLegend(colour, values) {
  const place = byId("map-legend");
  place.replaceChildren("Area: items. Colour: " + colour.title);
  if (!values.length) { place.append(", unknown so far"); return; }
  place.append(", " + colour.say(Math.min(...values)));
  make("i", "", place);
  place.append(colour.say(Math.max(...values)));
}
for (const [name, { title }] of Object.entries(COLOURS)) make("option", "", byId("colour"), title).value = name;
byId("colour").addEventListener("change", () => { if (shown && !shown.is_leaf) drawMap(shown); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (shown && !shown.is_leaf) drawMap(shown); });

// -- one item ----------------------------------------------------------------------------------------------
async function showItem(id) {
  const dialog = byId("item");
  put(byId("item-title"), "Item " + id);
  byId("item-body").hidden = true;
  notice(byId("item-notice"), "Looking it up");
  if (!dialog.open) dialog.showModal();
  let found;
  try {
    found = await askJson("/v1/items/" + encodeURIComponent(id));
  } catch (error) {
    notice(byId("item-notice"), upper(error.message) + ".", true);
    return;
  }
  notice(byId("item-notice"), found.path.length ? "" : "It is in no leaf yet: searches find it by scoring all items.");
  showCards(byId("item-cards"), [["popularity", share(found.popularity, 3), "of the stream"], ["events", count(found.events), ""],
    ["first met", lasting(found.age_ms / 1000), "before the newest event"], ["last met", lasting(found.idle_ms / 1000), "before the newest event"]]);
  fill(byId("item-path"), ["level", { title: "node", text: "text" }, "items", "likeness"], found.path.map((step, at) => ["" + (at + 1),
    (place) => { link(place, "node " + step.node, () => { dialog.close(); goTo(step.node); }); }, count(step.items), decimals(step.similarity, 3)]));
  byId("item-neighbours").replaceChildren();
  for (const other of found.neighbours) link(byId("item-neighbours"), "" + other, () => showItem(other));
  byId("item-body").hidden = false;
}
byId("item-close").addEventListener("click", () => byId("item").close());

// -- asking for a user -------------------------------------------------------------------------------------
// What looks like an integer is one, and its digits go over the wire as they are.
const idJson = (text) => /^-?(0|[1-9][0-9]{0,18})$/.test(text) ? text : JSON.stringify(text);
byId("question").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target.elements, button = event.target.querySelector("button[type=submit]");
  const history = form.history.value.split(",").map((text) => text.trim()).filter(Boolean);
  const body = '{"user_id":' + idJson(form.user.value.trim()) + ',"k":' + Number(form.k.value) + ',"history":[' + history.map(idJson) + "]}";
  button.disabled = true;
  notice(byId("answer-notice"), "Asking");
  try {
    showAnswer(await askJson("/v1/explain", body));
    notice(byId("answer-notice"), "");
  } catch (error) {
    byId("answer").hidden = true;
    notice(byId("answer-notice"), upper(error.message) + ".", true);
  } finally {
    button.disabled = false;
  }
});
function showExamples(found) {
  const place = byId("examples"), ids = found.example_users, said = JSON.stringify(ids);
  if (shownBefore.get(place) === said || !ids.length) return;
  shownBefore.set(place, said);
  place.replaceChildren("Such as ");
  for (const id of ids) link(place, "" + id, () => { byId("user").value = id; byId("question").requestSubmit(); });
}
function showAnswer(found) {
  byId("answer").hidden = false;
  showCards(byId("answer-cards"), [
    ["user " + found.user_id, found.known ? "known" : "unknown", found.known ? "" : "answered like a newcomer"],
    ["history used", count(found.history.length), found.history.length ? "items, newest first" : "none"],
    ["items scored", count(found.scored), share(found.scored / found.catalogue) + " of " + count(found.catalogue)],
    ["leaves read", count(found.leaves_read), "for a budget of " + count(found.budget) + " items"],
    ["version", found.version, "epoch " + count(found.epoch)],
  ]);
  const place = byId("answer-history");
  place.replaceChildren(found.history.length ? "History: " : "");
  found.history.slice(0, 12).forEach((id, at) => { if (at) place.append(", "); link(place, "" + id, () => showItem(id)); });
  if (found.history.length > 12) place.append(" and " + (found.history.length - 12) + " more");
  fill(byId("answer-items"), ["", { title: "item", text: "text" }, "score", "own part", "leaf's part", { title: "leaf", text: "text" },
    { title: "met by", text: "text" }], found.items.map((item, at) => ["" + (at + 1), (cell) => { link(cell, "" + item.item_id, () => showItem(item.item_id)); },
      decimals(item.score, 3), signed(item.item_part), signed(item.node_part), (cell) => {
        if (item.leaf) link(cell, item.leaf, () => goTo(item.leaf)); else cell.textContent = found.beams.length ? "none yet" : "";
      }, item.named ? "interest" : item.leaf ? "leaf" : ""]));
  showLevels(found);
  fill(byId("answer-leaves"), [{ title: "leaf", text: "text" }, "score", "items met"], found.leaves.map((leaf) => [
    (cell) => { if (leaf.node) link(cell, leaf.node, () => goTo(leaf.node)); else cell.textContent = "all items"; },
    decimals(leaf.score, 3), count(leaf.met) + " of " + count(leaf.items)]));
}
function showLevels(found) {
  const place = byId("levels");
  place.replaceChildren();
  if (!found.beams.length) make("p", "notice", place, "The index is not filled yet, so every item was scored.");
  found.beams.forEach((beam, level) => {
    const card = make("div", "level card", place), isLast = level + 1 === found.beams.length;
    make("p", "note", card, "Level " + (level + 1) + ": " + count(beam.nodes) + " nodes scored, "
      + count(beam.kept) + (isLast ? " with items" : " kept"));
    const best = beam.best.slice(0, SHOWN_NODES), scores = beam.best.map((node) => node.score);
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    for (const node of best) {
      const row = make("div", "bar", card);
      link(row, node.node, () => goTo(node.node), "See node " + node.node);
      make("div", "fill", make("div", "track", row)).style.width = (high > low ? 8 + 92 * (node.score - low) / (high - low) : 100) + "%";
      make("span", "share", row, decimals(node.score, 3));
    }
    if (beam.kept > best.length) make("p", "note", card, "and " + count(beam.kept - best.length) + " more");
  });
}

// -- begin -------------------------------------------------------------------------------------------------
put(byId("backend"), BACKEND);
document.title = "HSNN " + BACKEND;
const LINKS = IS_DAEMON ? ["/status", "/metrics", "/healthz", "/readyz"] : ["/docs", "/metrics", "/healthz", "/readyz"];
LINKS.forEach((path, at) => { if (at) byId("links").append(" · "); make("a", "", byId("links"), path.slice(1)).href = path; });
// A page in a hidden tab asks for nothing.
function repeat(job, everyMs) {
  const again = () => (document.hidden ? Promise.resolve() : job().catch(() => {})).then(() => setTimeout(again, everyMs));
  again();
}
repeat(turn, LIVE_MS);
repeat(showVersions, SLOW_MS);
if (IS_DAEMON) repeat(showPictures, SLOW_MS);
showNode();
// What is being read or used stays; otherwise the index is kept fresh while it is in sight.
setInterval(() => {
  const box = byId("index").getBoundingClientRect(), isSeen = box.top < innerHeight && box.bottom > 0;
  const isInUse = byId("index").contains(document.activeElement) || byId("entries-box").scrollTop > 0 || shown?.offset;
  if (!document.hidden && shown && isSeen && !isInUse && !wasAway) showNode(0, true);
}, SLOW_MS);
