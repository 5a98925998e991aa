// The figures of the page: what the writers of the logs do, as numbers and pictures. page.js has what both use.
"use strict";

const SHOWN_SECONDS = 300; // of the pictures
const SHOWN_FIRST = 60; // while there is less
const RECENT_SECONDS = 10; // of the percentiles

const stats = { tick: 0, samples: [], hover: null };

const ns = (value) =>
  value >= 1e9 ? (value / 1e9).toPrecision(3) + " s"
    : value >= 1e6 ? (value / 1e6).toPrecision(3) + " ms"
      : value >= 1e3 ? (value / 1e3).toPrecision(3) + " µs"
        : value + " ns";

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return (unit && bytes < 100 ? bytes.toFixed(1) : grouped(bytes)) + " " + units[unit];
}

function percentile(buckets, percent) {
  let total = 0;
  for (const [, count] of buckets) total += count;
  let left = Math.max(1, Math.ceil((percent / 100) * total - 1e-9));
  for (const [longest, count] of buckets) {
    left -= count;
    if (left <= 0) return longest;
  }
  return 0;
}

function merged(samples) {
  const counts = new Map();
  for (const sample of samples) for (const [longest, count] of sample.latency) counts.set(longest, (counts.get(longest) ?? 0) + count);
  return [...counts].sort((one, other) => one[0] - other[0]);
}

async function watchStats() {
  for (;;) {
    try {
      if (!document.hidden) {
        const response = await ask("stats?after=" + stats.tick);
        if (response.ok) showStats(await response.json());
      }
    } catch (error) {
      // the stream says that the server is not there
    }
    await sleep(1);
  }
}

function showStats(answer) {
  if (answer.tick < stats.tick) stats.samples = []; // another server
  stats.tick = answer.tick;
  stats.samples.push(...answer.samples);
  const newest = stats.samples[stats.samples.length - 1];
  const oldest = (newest?.time_ms ?? 0) - 1000 * SHOWN_SECONDS;
  stats.samples = stats.samples.filter((sample) => sample.time_ms > oldest);
  $("names").textContent = answer.logs.length === 1 ? visible(answer.logs[0].name) : `${answer.logs.length} logs`;
  document.title = answer.logs.length === 1 ? `${visible(answer.logs[0].name)} – pmwal` : "pmwal";
  $("rows").classList.toggle("several", answer.logs.length > 1);
  const longest = Math.max(2, ...answer.logs.map((log) => visible(log.name).length));
  $("rows").style.setProperty("--log-width", answer.logs.length > 1 ? `${Math.min(longest, 16)}ch` : "0");
  $("records").textContent = newest ? grouped(newest.records) : "–";
  $("bytes").textContent = newest ? size(newest.bytes) + "/s" : "–";
  $("commits").textContent = newest ? grouped(newest.commits) + "/s" : "–";
  const since = (newest?.time_ms ?? 0) - 1000 * RECENT_SECONDS;
  const recent = merged(stats.samples.filter((sample) => sample.time_ms > since));
  for (const [id, percent] of [["p50", 50], ["p99", 99], ["max", 100]]) {
    $(id).textContent = recent.length ? ns(percentile(recent, percent)) : "–";
  }
  showLogs(answer.logs);
  drawRates();
  drawHeat();
}

function showLogs(logs) {
  const list = $("logs");
  while (list.childElementCount > logs.length) list.lastElementChild.remove();
  while (list.childElementCount < logs.length) {
    const item = make("li");
    const bar = make("progress");
    bar.max = 1;
    item.append(make("span", "name"), make("span", "share"), bar, make("span", "numbers"));
    list.append(item);
  }
  logs.forEach((log, index) => {
    const item = list.children[index];
    const [name, share, bar, numbers] = item.children;
    const bounds = log.bounds;
    item.classList.toggle("running", Boolean(log.writer?.alive));
    name.textContent = visible(log.name);
    name.title = log.writer?.alive ? "a process writes it" : "no process writes it";
    share.textContent = bounds ? (100 * bounds.fill).toFixed(0) + " %" : "";
    bar.hidden = !bounds;
    bar.value = bounds ? bounds.fill : 0;
    bar.setAttribute("aria-label", "fill");
    const count = bounds ? bounds.last_seq - bounds.first_seq + 1 : 0;
    numbers.textContent = bounds ? `${grouped(count)} records, ${size(bounds.used_bytes)} of ${size(log.capacity)}` : visible(log.error ?? "not known");
  });
}

function canvas(id) {
  const element = $(id);
  const scale = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = element;
  if (!width || !height) return null;
  if (element.width !== Math.round(width * scale) || element.height !== Math.round(height * scale)) {
    element.width = Math.round(width * scale);
    element.height = Math.round(height * scale);
  }
  const context = element.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue("--" + name).trim();
  return { context, width, height, color };
}

function shownSeconds() {
  const { samples } = stats;
  return samples.length && samples[samples.length - 1].time_ms - samples[0].time_ms > 1000 * SHOWN_FIRST ? SHOWN_SECONDS : SHOWN_FIRST;
}

function drawRates() {
  const area = canvas("rates");
  if (!area) return;
  const { context, width, height, color } = area;
  const samples = stats.samples;
  context.strokeStyle = color("line");
  context.beginPath();
  context.moveTo(0, height - 0.5);
  context.lineTo(width, height - 0.5);
  context.stroke();
  if (samples.length < 2) return;
  const end = samples[samples.length - 1].time_ms;
  const most = Math.max(1, ...samples.map((sample) => sample.records));
  const x = (sample) => width - ((end - sample.time_ms) / 1000 / shownSeconds()) * width;
  const y = (sample) => height - 1 - (sample.records / most) * (height - 6);
  context.beginPath();
  samples.forEach((sample, index) => (index ? context.lineTo(x(sample), y(sample)) : context.moveTo(x(sample), y(sample))));
  context.strokeStyle = color("accent");
  context.lineWidth = 1.5;
  context.stroke();
  context.lineTo(width, height);
  context.lineTo(x(samples[0]), height);
  context.fillStyle = color("accent");
  context.globalAlpha = 0.12;
  context.fill();
  context.globalAlpha = 1;
}

const HEAT = { left: 52, bottom: 18, cells: 36 };

function heatRange() {
  let least = Infinity;
  let most = 0;
  for (const sample of stats.samples) {
    for (const [longest] of sample.latency) {
      least = Math.min(least, longest);
      most = Math.max(most, longest);
    }
  }
  if (!most) return [3, 7];
  const low = Math.floor(Math.log10(Math.max(least, 1)));
  return [low, Math.max(low + 2, Math.ceil(Math.log10(most)))];
}

function drawHeat() {
  const area = canvas("heat");
  if (!area) return;
  const { context, width, height, color } = area;
  const [low, high] = heatRange();
  const wide = width - HEAT.left;
  const tall = height - HEAT.bottom;
  const y = (power) => tall - ((power - low) / (high - low)) * tall;
  context.font = "11px system-ui, sans-serif";
  context.textBaseline = "middle";
  context.textAlign = "right";
  const every = high - low > 5 ? 2 : 1;
  for (let power = low; power <= high; power += 1) {
    context.strokeStyle = color("line");
    context.beginPath();
    context.moveTo(HEAT.left, Math.round(y(power)) + 0.5);
    context.lineTo(width, Math.round(y(power)) + 0.5);
    context.stroke();
    context.fillStyle = color("muted");
    if ((power - low) % every === 0) context.fillText(ns(10 ** power).replace(/\.0+ /, " "), HEAT.left - 6, Math.min(Math.max(y(power), 6), tall - 2));
  }
  context.textBaseline = "bottom";
  context.textAlign = "left";
  context.fillText(`${shownSeconds() / 60} min ago`, HEAT.left, height);
  context.textAlign = "right";
  context.fillText("now", width, height);
  if (!stats.samples.length) return;
  const end = stats.samples[stats.samples.length - 1].time_ms;
  const columns = Math.min(Math.floor(wide / 3), shownSeconds());
  const counts = heatCounts(end, columns, low, high);
  let most = 0;
  for (const count of counts.values()) most = Math.max(most, count);
  context.fillStyle = color("accent");
  for (const [key, count] of counts) {
    const column = Math.floor(key / HEAT.cells);
    const cell = key % HEAT.cells;
    context.globalAlpha = 0.15 + 0.85 * (Math.log1p(count) / Math.log1p(most));
    context.fillRect(HEAT.left + (column * wide) / columns, tall - ((cell + 1) * tall) / HEAT.cells, wide / columns - 0.4, tall / HEAT.cells - 0.4);
  }
  context.globalAlpha = 1;
  heatText(end, columns, counts, low, high);
}

function heatCounts(end, columns, low, high) {
  const counts = new Map();
  for (const sample of stats.samples) {
    const column = columns - 1 - Math.floor(((end - sample.time_ms) / 1000 / shownSeconds()) * columns);
    if (column < 0) continue;
    for (const [longest, count] of sample.latency) {
      const cell = Math.min(HEAT.cells - 1, Math.max(0, Math.floor(((Math.log10(longest) - low) / (high - low)) * HEAT.cells)));
      const key = column * HEAT.cells + cell;
      counts.set(key, (counts.get(key) ?? 0) + count);
    }
  }
  return counts;
}

// What is under the pointer, in words.
function heatText(end, columns, counts, low, high) {
  const at = stats.hover;
  if (!at) {
    $("heat-text").textContent = counts.size ? "stronger: more commits" : "no commit was timed (in memory one in 64 is)";
    return;
  }
  const column = Math.floor(at.x * columns);
  const cell = Math.floor(at.y * HEAT.cells);
  const count = counts.get(column * HEAT.cells + cell) ?? 0;
  const ago = Math.round(((columns - 1 - column) / columns) * shownSeconds());
  const bound = (each) => ns(Math.round(10 ** (low + (each / HEAT.cells) * (high - low))));
  $("heat-text").textContent = `${ago} s ago, ${bound(cell)} to ${bound(cell + 1)}: ${grouped(count)}`;
}
