// The studio, the page of `unpaired serve`: an image in, its translations out, and ways to move between them.
// Everything from outside (domains, file names, messages) reaches the page as text, never as markup.

const BODY_LIMIT = 20_000_000; // bytes the server takes in one request
const TYPES = ["image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif", "image/tiff"];
const SEEDS = 2n ** 62n;
const MOST = 16; // results, or style images
const SLIDERS = 8; // components shown at once
const BLENDS = 7; // pictures on the way from A to B
const ATTEMPTS = 6; // requests sent to a busy server before giving up
const PASSING = ["busy", "loading"]; // refusals that have nothing to do with what was asked

const state = {
  token: null,
  models: [],
  model: null,
  image: null, // the input: {id, file, url, shown}
  images: 0, // taken so far: each has a number
  examples: Math.floor(Math.random() * 1000), // the last one that was taken
  references: [], // images whose styles to take: {id, file, url}
  way: null, // how the person wants to say a style, where a direction has that way
  results: [], // pictures: {url, style, label, to, width, height}
  blend: [], // pictures on the way from mark A to mark B
  marks: { A: null, B: null }, // {style, label}
  outdated: { results: false, blend: false }, // whether these are of earlier settings
  selected: null, // a picture of the results or of the blend
  edited: null, // the picture that moved sliders made of it
  style: null, // what the sliders say
  spread: null, // {mean, std} of the components, where styles can be drawn at random
  page: 0, // of the sliders
};

const $ = (id) => document.getElementById(id);
const copyOf = (template) => $(template).content.firstElementChild.cloneNode(true);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const since = (start) => `${((performance.now() - start) / 1000).toFixed(1)} s`;

// Status

/** A failure whose message is meant for the person. */
class Problem extends Error {
  constructor(message, requestId) {
    super(message);
    this.requestId = requestId;
  }
}

function say(text, problem) {
  $("status").textContent = text;
  $("status").title = problem?.requestId ? `Request ${problem.requestId}` : "";
  $("status").classList.toggle("error", Boolean(problem));
  $("retry").hidden = true;
}

/** Says what went wrong; `again`, if given, does it once more. */
function fail(error, again) {
  if (!(error instanceof Problem)) console.error(error);
  say(error.message, error);
  $("retry").hidden = !again;
  $("retry").onclick = again;
}

// Server

/** Asks the server. Waits and asks again while it is busy, and asks the person for a token where it wants one. */
async function call(path, { body, signal, as = "json" } = {}) {
  for (let attempt = 1; ; attempt++) {
    const { token } = state;
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    let response, answer;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal });
      answer = await (response.ok ? response[as]() : response.json());
    } catch (error) {
      if (error.name === "AbortError") throw error;
      const unread = response && `The server's answer (${response.status}) cannot be read.`;
      throw new Problem(unread ?? "The server cannot be reached.");
    }
    if (response.ok) return answer;
    const { code, message, request_id: id } = answer?.error ?? {};
    const problem = new Problem(message ?? `The server answered ${response.status}.`, id);
    if (response.status === 401) {
      if (token === state.token) await newToken(problem); // else another request has got one meanwhile
    } else if (PASSING.includes(code) && attempt < ATTEMPTS) {
      const seconds = Math.min(Math.max(Number(response.headers.get("Retry-After")) || 2, 1), 60);
      say(`${problem.message} Trying again in ${seconds} s.`);
      await pause(seconds, signal);
    } else {
      throw problem;
    }
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}

let asking = null; // requests that need a token share one promise of it

function newToken(problem) {
  say(problem.message, problem);
  $("token-form").hidden = false;
  $("token").focus();
  asking ??= new Promise((resolve) => {
    $("token-form").onsubmit = (event) => {
      event.preventDefault();
      keepToken($("token").value);
      $("token-form").reset();
      $("token-form").hidden = true;
      asking = null;
      say("");
      resolve();
    };
  });
  return asking;
}

function keepToken(token) {
  state.token = token;
  sessionStorage.setItem("token", token);
}

/** Takes the token out of `/#token=...`, so that it stays neither in the address bar nor in the history. */
function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    keepToken(token);
    history.replaceState(null, "", location.pathname + location.search);
  }
  state.token ??= sessionStorage.getItem("token");
}

/** Runs one job at a time, the newest. A new job aborts the running one; in a patient lane it waits for its end, so
 *  that a slider on the move shows pictures on its way. */
function lane({ patient }) {
  let job, timer, controller;
  async function next() {
    timer = null;
    if (controller || !job) return; // this is called again when the running job ends
    const [running, mine] = [job, (controller = new AbortController())];
    job = null;
    await running(mine.signal).catch((error) => {
      if (!mine.signal.aborted) fail(error, () => run(running, 0)); // else something newer replaced it
    });
    if (controller !== mine) return; // it was stopped
    controller = null;
    if (!timer) next(); // else the timer calls it
  }
  function stop() {
    clearTimeout(timer);
    if (controller) {
      controller.abort();
      say(""); // what it said of itself is over
    }
    job = timer = controller = null;
  }
  function run(newest, delay) {
    if (!patient) stop();
    job = newest;
    timer ??= setTimeout(next, delay);
  }
  return { run, stop };
}

const inputs = lane({ patient: false });
const translations = lane({ patient: false });
const edits = lane({ patient: true });
const blends = lane({ patient: false });

// Settings

const leads = (source, to) => (d) => d.sources.includes(source) && d.to.includes(to);
const direction = () => state.model.directions.find(leads($("source").value, $("to").value));
const wayInputs = [...document.querySelectorAll("[name=way]")];

/** The ways to say a style that the direction has and this page knows, and the chosen one of them. */
const ways = () => direction().styles.filter((way) => wayInputs.some(({ value }) => value === way));
const way = () => (ways().includes(state.way) ? state.way : ways()[0]);

function fill(select, values, wanted) {
  select.replaceChildren(...[...new Set(values)].map((value) => new Option(value, value)));
  if (values.includes(wanted)) select.value = wanted;
}

function chooseModel(name) {
  state.model = state.models.find((model) => model.name === name);
  const { method, size, step, directions } = state.model;
  $("facts").textContent = `${method}, ${size.join(" × ")} px, step ${step.toLocaleString("en")}`;
  $("size").placeholder = Math.min(...size);
  $("size").value = "";
  $("example").hidden = !state.model.examples.length;
  const [source] = directions[0].sources;
  chooseDirection(source, directions[0].to.find((to) => to !== source));
}

/** Chooses a source, and a target that it has: the wanted one, else another domain. */
function chooseDirection(source, wanted) {
  const { directions, domains } = state.model;
  const targets = domains.filter((to) => directions.some(leads(source, to)));
  const to = targets.includes(wanted) ? wanted : (targets.find((target) => target !== source) ?? source);
  fill($("source"), domains.filter((name) => directions.some((d) => d.sources.includes(name))), source);
  fill($("to"), targets, to);
  const fixed = domains.length === 2 && targets.length === 1; // two names and Swap say it all
  $("menus").hidden = fixed;
  $("direction").hidden = !fixed;
  $("direction").textContent = `${source} → ${to}`;
  $("swap").hidden = source === to || !directions.some(leads(to, source));
  clearMarks(); // a style belongs to its domain
  showWays();
}

function showWays() {
  $("ways").hidden = ways().length < 2;
  for (const input of wayInputs) {
    input.checked = input.value === way();
    input.parentElement.hidden = !ways().includes(input.value);
  }
  document.body.classList.toggle("single", way() !== "latent" && way() !== "reference");
  $("random-settings").hidden = way() !== "latent";
  $("reference-settings").hidden = way() !== "reference";
  $("reference-hint").textContent = `Each image of ${$("to").value} gives one result, in its style.`;
}

/** What a field says, as text: a seed may have more digits than a number. */
function whole(id, name, least, most) {
  const text = $(id).value.trim();
  if (/^\d+$/.test(text) && BigInt(text) >= least && BigInt(text) <= most) return text;
  throw new Problem(`${name} is a whole number from ${least} to ${most}.`);
}

// Images

/** Raises a `Problem` for a file that the server would refuse. */
function check(file) {
  if (file.type && !TYPES.includes(file.type)) {
    throw new Problem(`${file.name} is not a JPEG, PNG, WebP, BMP, GIF or TIFF image.`);
  }
  checkSize([file]);
}

/** A copy in memory of a file, which may change or vanish before it is sent. */
async function read(file) {
  const bytes = await file.arrayBuffer().catch(() => {
    throw new Problem(`${file.name} cannot be read.`);
  });
  return new File([bytes], file.name, { type: file.type });
}

const numbered = (file) => ({ id: (state.images += 1), file, url: URL.createObjectURL(file) });

function checkSize(files) {
  const bytes = files.reduce((sum, file) => sum + file.size, 0);
  if (bytes <= BODY_LIMIT - 100_000) return; // room for the other fields
  const [names, verb] = [files.map((file) => file.name).join(" and "), files.length > 1 ? "have" : "has"];
  throw new Problem(`${names} ${verb} ${(bytes / 1e6).toFixed(1)} MB; the server takes at most ${BODY_LIMIT / 1e6} MB.`);
}

function takeImage(file) {
  check(file);
  inputs.run(async (signal) => showInput(await read(file), signal), 0);
}

/** The next of the built-in scenes, for a model that learned from such. */
function takeExample() {
  inputs.run(async (signal) => {
    const { examples, name } = state.model;
    const index = (state.examples += 1);
    const domain = examples.includes($("source").value) ? $("source").value : examples[index % examples.length];
    const query = new URLSearchParams({ domain, index });
    say("Fetching an example …");
    const picture = await call(modelPath(`example?${query}`), { signal, as: "blob" });
    if (state.model.name !== name) return;
    showInput(new File([picture], `${domain} ${index}.png`, { type: "image/png" }), signal);
  }, 0);
}

/** Puts an image in place of the input, unless another was taken while it came. */
function showInput(file, signal) {
  signal.throwIfAborted();
  if (state.image) URL.revokeObjectURL(state.image.url);
  state.image = numbered(file);
  const { url } = state.image;
  document.body.classList.remove("empty");
  Object.assign($("input-image"), { src: url, alt: `Input: ${file.name}` });
  $("before").src = url;
  $("input-name").textContent = $("input-name").title = file.name;
  translate();
}

/** All of the files, or none. */
async function takeReferences(files) {
  files.forEach(check);
  if (state.references.length + files.length > MOST) throw new Problem(`At most ${MOST} style images.`);
  state.references.push(...(await Promise.all(files.map(read))).map(numbered));
  showReferences();
  translate();
}

function showReferences() {
  $("references").replaceChildren(...state.references.map(referenceItem));
}

function referenceItem(reference) {
  const item = copyOf("reference");
  const [image, caption, remove] = item.children;
  const { name } = reference.file;
  Object.assign(image, { src: reference.url, alt: `Style image ${name}` });
  caption.textContent = caption.title = name;
  remove.setAttribute("aria-label", `Remove ${name}`);
  remove.onclick = () => {
    URL.revokeObjectURL(reference.url);
    state.references = state.references.filter((other) => other !== reference);
    showReferences();
    $("reference-file").focus();
    translate();
  };
  return item;
}

/** Takes files given at an element: as style images where these are kept, else the first as the input. */
async function take(files, element) {
  if (!state.model) return;
  try {
    if (!files.length) throw new Problem("That is not an image file.");
    await ($("reference-settings").contains(element) ? takeReferences(files) : takeImage(files[0]));
  } catch (problem) {
    fail(problem);
  }
}

// Translation

function modelPath(end) {
  return `/v1/models/${encodeURIComponent(state.model.name)}/${end}`;
}

function request(fields, signal) {
  const size = $("size").value && whole("size", "The shorter side", state.model.least, 100_000);
  const all = { image: state.image.file, source: $("source").value, to: $("to").value, size, ...fields };
  checkSize([all.image, all.reference].filter(Boolean));
  const body = new FormData();
  for (const [name, value] of Object.entries(all)) if (value !== "") body.append(name, value);
  return call(modelPath("translate"), { body, signal });
}

function pictures({ images, to, width, height }, label) {
  return images.map(({ png, style }, i) => {
    const bytes = Uint8Array.from(atob(png), (letter) => letter.charCodeAt(0));
    const url = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    return { url, style, label: label(i), to, width, height };
  });
}

/** Translates anew by the settings as they are, shortly after the last call. */
function translate(delay = 250) {
  if (!state.image) return;
  select(state.selected); // without what sliders made of it
  blends.stop();
  outdate({ results: true, blend: true });
  translations.run(async (signal) => {
    const start = performance.now();
    say("Translating …");
    state.spread = await spread(signal);
    await (way() === "reference" ? byReferences : byStyles)(signal);
    outdate({ results: false });
    const n = state.results.length;
    say(n ? `${n} ${n === 1 ? "result" : "results"} in ${since(start)}` : "Add an image whose style to take.");
    blend();
  }, delay);
}

async function byStyles(signal) {
  const fields = {};
  if (way() === "latent") {
    fields.styles = whole("count", "The number of results", 1, MOST);
    fields.seed = whole("seed", "The seed", 0, SEEDS - 1n);
  }
  const answer = await request(fields, signal);
  const label = { latent: (i) => `Style ${i + 1}`, mean: () => "Mean style" }[way()] ?? (() => answer.to);
  replace("results", pictures(answer, label));
}

/** One result for each style image, shown as it comes. Those of the same settings remain, and a bad image is told of
 *  when the others are done. */
async function byReferences(signal) {
  const settings = [state.image.id, state.model.name, $("source").value, $("to").value, $("size").value];
  const keys = state.references.map(({ id }) => [id, ...settings].join("\n"));
  const made = keys.map((key) => state.results.find((picture) => picture.key === key));
  const show = () => (replace("results", made.filter(Boolean)), outdate({ results: false }));
  let bad = null;
  if (made.some(Boolean) || !made.length) show();
  for (const [i, { file }] of state.references.entries()) {
    if (made[i]) continue;
    say(`Translating, ${i + 1} of ${made.length} …`);
    try {
      const [picture] = pictures(await request({ reference: file }, signal), () => file.name);
      made[i] = { ...picture, key: keys[i] };
      show();
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      bad = new Problem(`${file.name}: ${error.message}`, error.requestId);
    }
  }
  if (bad) throw bad;
}

const spreads = new Map(); // by path

async function spread(signal) {
  if (!direction().styles.includes("latent")) return null;
  const path = modelPath(`styles?to=${encodeURIComponent($("to").value)}`);
  if (!spreads.has(path)) spreads.set(path, await call(path, { signal }));
  return spreads.get(path);
}

// Results

/** Shows what belongs to earlier settings as such; the selected picture goes with its list. */
function outdate(changes) {
  const { results, blend } = Object.assign(state.outdated, changes);
  const panel = state.blend.includes(state.selected) ? blend : results;
  for (const [id, yes] of Object.entries({ results, blend, panel })) {
    $(id).classList.toggle("outdated", yes);
    $(id).inert = yes;
  }
}

/** Puts pictures in place of those of a list. The selection keeps its picture, else its place; the focus its place. */
function replace(list, fresh) {
  const at = state[list].indexOf(state.selected);
  const focused = [...$(list).children].findIndex((item) => item.contains(document.activeElement));
  for (const old of state[list]) if (!fresh.includes(old)) URL.revokeObjectURL(old.url);
  state[list] = fresh;
  $(list).replaceChildren(...fresh.map(tile));
  $(list).children[focused]?.firstElementChild.focus({ preventScroll: true });
  $("blend-section").hidden = !state.results.some(({ style }) => style);
  const lost = at >= 0 ? !fresh.includes(state.selected) : !state.selected;
  if (lost) select(fresh[at] ?? fresh[0] ?? state.results[0] ?? null);
  showMarks();
}

function tile(picture) {
  const item = copyOf("tile");
  const button = item.firstElementChild;
  const [image, caption] = button.children;
  const { url: src, width, height } = picture;
  Object.assign(image, { src, width, height }); // with its size its place is there before it is
  caption.textContent = button.title = picture.label;
  button.setAttribute("aria-pressed", picture === state.selected);
  button.onclick = () => {
    select(picture);
    $("frame").scrollIntoView({ block: "nearest" }); // on narrow screens it is further down
  };
  return item;
}

function select(picture) {
  edits.stop();
  if (state.edited) URL.revokeObjectURL(state.edited.url);
  state.edited = null;
  state.selected = picture;
  state.style = picture?.style ? [...picture.style] : null;
  for (const list of ["results", "blend"]) {
    for (const [i, item] of [...$(list).children].entries()) {
      item.firstElementChild.setAttribute("aria-pressed", state[list][i] === picture);
    }
  }
  $("panel").hidden = !picture;
  outdate();
  if (!picture) return;
  showPicture();
  showSliders();
}

const current = () => state.edited ?? state.selected;

function showPicture() {
  const { url, style, label, to, width, height } = current();
  const { name } = state.image.file;
  Object.assign($("large"), { src: url, alt: `${name} translated to ${to}: ${label}` });
  $("panel-title").textContent = label;
  $("frame").style.setProperty("--ratio", width / height);
  const words = (text) => text.replace(/\.\w+$/, "").match(/[\p{L}\p{N}]+/gu) ?? []; // without a file's ending
  Object.assign($("download"), { href: url, download: `${[name, to, label].flatMap(words).join("-")}.png` });
  $("copy").hidden = $("marks").hidden = !style;
  showCompare();
  showMarks();
}

function showCompare() {
  const split = $("compare").value;
  $("compare-field").hidden = !state.image.shown;
  $("before").hidden = $("divider").hidden = !state.image.shown || split === "0";
  $("frame").style.setProperty("--split", `${split}%`);
}

async function copyStyle() {
  const { style } = current();
  const text = JSON.stringify(style);
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
  } else { // plain http from another machine
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    document.execCommand("copy");
    area.remove();
    $("copy").focus();
  }
  say(`The style is copied: ${style.length} numbers as JSON.`);
}

// Sliders

function showSliders() {
  const { spread, style } = state;
  $("sliders").hidden = !style || spread?.mean.length !== style.length;
  if ($("sliders").hidden) return;
  const pages = Math.ceil(style.length / SLIDERS);
  state.page = (state.page + pages) % pages;
  const from = state.page * SLIDERS;
  const components = [...style.keys()].slice(from, from + SLIDERS);
  $("slider-list").replaceChildren(...components.map(slider));
  $("back").hidden = $("more").hidden = pages === 1;
  $("page").textContent = `Components ${from}–${components.at(-1)} of ${style.length}`;
}

/** The slider of component k, counted from 0 as everywhere in unpaired. */
function slider(k) {
  const label = copyOf("slider");
  const [name, range, output] = label.children;
  const [mean, std] = [state.spread.mean[k], state.spread.std[k]];
  const show = () => {
    const value = std > 0 ? (state.style[k] - mean) / std : 0; // of an image's style it may lie beyond the ends
    output.textContent = `${value <= -0.05 ? "−" : "+"}${Math.abs(value).toFixed(1)} σ`;
    range.setAttribute("aria-valuetext", output.textContent.replace("σ", "standard deviations"));
    return value;
  };
  name.textContent = k;
  range.setAttribute("aria-label", `Component ${k}`);
  range.disabled = !(std > 0);
  range.value = show();
  range.oninput = () => {
    state.style[k] = mean + std * range.value;
    show();
    edit();
  };
  return label;
}

function edit() {
  edits.run(async (signal) => {
    const start = performance.now();
    const answer = await request({ style: JSON.stringify(state.style) }, signal);
    const [picture] = pictures(answer, () => `${state.selected.label}, edited`);
    if (state.edited) URL.revokeObjectURL(state.edited.url);
    state.edited = picture;
    showPicture();
    say(`1 result in ${since(start)}`);
  }, 120);
}

// Blend

function mark(letter) {
  const { style, label } = current();
  state.marks[letter] = same(style, state.marks[letter]?.style) ? null : { style, label };
  showMarks();
  blend({ reveal: true });
}

function clearMarks() {
  state.marks = { A: null, B: null };
  showMarks();
  blend();
}

function showMarks() {
  const { A, B } = state.marks;
  const isMark = (picture, letter) => Boolean(state.marks[letter]) && same(picture?.style, state.marks[letter].style);
  for (const letter of "AB") $(`mark-${letter}`).setAttribute("aria-pressed", isMark(current(), letter));
  for (const [i, item] of [...$("results").children].entries()) {
    const badge = item.querySelector(".badge");
    badge.textContent = [..."AB"].filter((letter) => isMark(state.results[i], letter)).join(" ");
    badge.hidden = !badge.textContent;
  }
  $("clear-marks").hidden = !A && !B;
  let hint = "Mark two results as A and B to see the way between them.";
  if (A && B) hint = `From ${A.label} (A) to ${B.label} (B), in a straight line between their styles.`;
  else if (A || B) hint = `${A ? "A" : "B"} is ${(A ?? B).label}. Now mark a result as ${A ? "B" : "A"}.`;
  $("blend-hint").textContent = hint;
}

function blend({ reveal = false } = {}) {
  const { A, B } = state.marks;
  blends.stop();
  outdate({ blend: Boolean(A && B) });
  if (!A || !B) return replace("blend", []);
  blends.run(async (signal) => {
    const start = performance.now();
    const shares = Array.from({ length: BLENDS }, (_, i) => i / (BLENDS - 1));
    const between = (a, b, share) => Number((a + (b - a) * share).toPrecision(9)); // all digits that a float32 has
    const styles = shares.map((share) => A.style.map((a, k) => between(a, B.style[k], share)));
    say("Blending …");
    const answer = await request({ style: JSON.stringify(styles) }, signal);
    const label = (i) => ({ 0: "A", 1: "B" })[shares[i]] ?? `${Math.round(shares[i] * 100)}% B`;
    replace("blend", pictures(answer, label));
    outdate({ blend: false });
    if (reveal) $("blend-section").scrollIntoView({ block: "nearest" });
    say(`A blend of ${BLENDS} in ${since(start)}`);
  }, 0);
}

// Start

function listen() {
  const changing = (change) => (event) => {
    change(event.target);
    translate();
  };
  const turning = (by) => () => {
    state.page += by;
    showSliders();
  };
  const choose = changing(() => chooseDirection($("source").value, $("to").value));
  const type = () => translate(500);
  const pick = ({ target }) => {
    if (target.files.length) take([...target.files], target);
    target.value = ""; // so that the same file may be chosen again
  };
  const listeners = {
    onchange: {
      model: changing(({ value }) => chooseModel(value)),
      source: choose,
      to: choose,
      ways: changing(({ value }) => {
        state.way = value;
        showWays();
      }),
      file: pick,
      "reference-file": pick,
    },
    oninput: { seed: type, count: type, size: type, compare: showCompare },
    onclick: {
      swap: changing(() => chooseDirection($("to").value, $("source").value)),
      another: changing(() => ($("seed").value = Math.floor(Math.random() * 1e6))),
      example: takeExample,
      copy: () => copyStyle().catch(fail),
      reset: () => select(state.selected),
      back: turning(-1),
      more: turning(1),
      "mark-A": () => mark("A"),
      "mark-B": () => mark("B"),
      "clear-marks": clearMarks,
    },
  };
  for (const [event, elements] of Object.entries(listeners)) {
    for (const [id, listener] of Object.entries(elements)) $(id)[event] = listener;
  }
  $("input-image").onload = $("input-image").onerror = (event) => {
    state.image.shown = event.type === "load"; // few browsers show TIFF
    $("input-image").hidden = !state.image.shown;
    $("no-preview").hidden = state.image.shown;
    if (state.selected) showCompare();
  };
  document.onpaste = ({ clipboardData: { files }, target }) => {
    if (files.length) take([...files], target);
  };
  document.ondragover = (event) => {
    event.preventDefault(); // else the browser opens the file
    document.body.classList.add("dragging");
  };
  document.ondragleave = ({ relatedTarget }) => {
    if (!relatedTarget) document.body.classList.remove("dragging"); // out of the window
  };
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    take([...event.dataTransfer.files], event.target);
  };
  window.onhashchange = () => (takeToken(), location.reload()); // its address with a token was opened again
}

async function start() {
  say("Loading the models …");
  try {
    state.models = (await call("/v1/models")).models;
    if (!state.models.length) throw new Problem("The server has no models.");
  } catch (error) {
    return fail(error, start);
  }
  fill($("model"), state.models.map((model) => model.name));
  $("model-field").hidden = state.models.length === 1;
  chooseModel(state.models[0].name);
  $("settings").hidden = false;
  say("Choose an image to translate.");
}

takeToken();
listen();
start();
