"""The page at `/`: drop an image, see what the model says. It holds nothing of the model; it asks for that itself."""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #4a7dbd; --quiet: #777; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; } .quiet { color: var(--quiet); font-size: .9rem; }
#drop { display: block; border: 2px dashed var(--line); border-radius: 8px; padding: 2rem; text-align: center;
  cursor: pointer; margin: 1.5rem 0; }
#drop.over, #drop:focus-within { border-color: var(--bar); } #drop input { position: absolute; opacity: 0; width: 1px; }
#seen { display: flex; gap: 1.5rem; align-items: flex-start; }
#seen img { width: 9rem; border: 1px solid var(--line); image-rendering: pixelated; }
table { border-collapse: collapse; width: 100%; } td { padding: .15rem .5rem .15rem 0; vertical-align: top; }
td.bar { width: 55%; vertical-align: middle; }
td.bar i { display: block; height: .8rem; background: var(--bar); min-width: 1px; }
td:last-child { text-align: right; font-variant-numeric: tabular-nums; } #about td:last-child { text-align: left; }
#about td:first-child { white-space: nowrap; color: var(--quiet); }
#error { color: #c33; } #warn { color: #b60; } [hidden] { display: none !important; }
"""

_SCRIPT = """
const at = id => document.getElementById(id);
const headers = () => at('token').value ? {authorization: 'Bearer ' + at('token').value} : {};
const percent = share => (100 * share).toFixed(1) + ' %';
const row = (into, ...cells) => {
  const line = into.insertRow();
  for (const cell of cells) line.insertCell().append(cell);
  return line;
};
async function ask(path, options) {
  const answer = await fetch(path, {...options, headers: headers()});
  const told = await answer.json();
  if (answer.status === 401) at('door').hidden = false;
  if (!answer.ok) throw new Error(told.error);
  return told;
}
function trying(work) {
  at('error').textContent = '';
  work().catch(error => { at('error').textContent = error.message; });
}
async function about() {
  const told = await ask('card'), card = told.card, report = told.report, into = at('about');
  at('name').textContent = told.model;
  at('version').textContent = 'version ' + told.version;
  into.replaceChildren();
  row(into, 'Network', card.model.arch + ', ' + card.model.classes + ' classes, ' + card.model.input_size + ' px');
  row(into, 'Trained', card.method.name + ' on ' + card.data.name + ', ' + card.date);
  row(into, 'Threat', card.threat.norm + ', radius ' + card.threat.eps);
  if (report) {
    row(into, 'Without attack', percent(report.clean) + ' right');
    row(into, 'Under attack', percent(report.robust) + ' right (' + report.interval.map(percent).join(' to ') +
      ') under ' + report.attack + ', ' + report.images + ' ' + report.split + ' images, ' + report.date.slice(0, 10));
    row(into, 'Read this so', report.note);
  } else row(into, 'Under attack', 'it was never attacked');
  at('warn').textContent = told.warning;
  at('door').hidden = true;
}
async function predict(file) {
  const told = await ask('predict', {method: 'POST', body: file});
  at('image').src = URL.createObjectURL(file);
  at('label').textContent = told.label;
  at('sure').textContent = percent(told.confidence) + ' sure, ' + percent(told.margin) + ' above the next class' +
    (told.low_margin ? ': too close to rely on' : '') + '. Sent: ' + told.size.join(' x ') + ' px.';
  at('classes').replaceChildren();
  for (const one of told.classes) {
    const bar = document.createElement('i');
    bar.style.width = percent(one.probability).replace(' ', '');
    row(at('classes'), one.label, bar, percent(one.probability)).cells[1].className = 'bar';
  }
  at('seen').hidden = false;
}
at('file').addEventListener('change', event => {
  if (event.target.files[0]) trying(() => predict(event.target.files[0]));
});
for (const name of ['dragover', 'dragleave', 'drop']) at('drop').addEventListener(name, event => {
  event.preventDefault();
  at('drop').classList.toggle('over', name === 'dragover');
  if (name === 'drop' && event.dataTransfer.files[0]) trying(() => predict(event.dataTransfer.files[0]));
});
at('door').addEventListener('submit', event => { event.preventDefault(); trying(about); });
trying(about);
"""

HTML = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>rrmsdk</title><link rel="icon" href="data:,"><style>{_STYLE}</style>
<h1 id="name">rrmsdk</h1><div class="quiet" id="version"></div>
<form id="door" hidden><p><label>Token <input id="token" type="password" autocomplete="off"></label>
<button>Open</button></p></form>
<label id="drop"><input id="file" type="file" accept="image/png,image/jpeg">
Drop a PNG or JPEG image here, or click</label>
<p id="error" role="alert"></p>
<div id="seen" hidden><img id="image" alt="the image that was sent"><div style="flex:1">
<strong id="label"></strong><div class="quiet" id="sure"></div><table id="classes"></table></div></div>
<h2>About this model</h2><p id="warn"></p><table id="about"></table>
<script>{_SCRIPT}</script></html>
"""

_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
# Nothing is loaded from anywhere, no other page may frame this one, and no other script runs in it.
POLICY = (
    f"default-src 'none'; script-src 'sha256-{_HASH}'; style-src 'unsafe-inline'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
