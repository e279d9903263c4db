// Draws what /api/jobs tells. Every text is put in as text: none of it is ever read as HTML.
const EVERY = 10000, SVG = 'http://www.w3.org/2000/svg';
const at = id => document.getElementById(id);
const TONE = {promoted: 'good', kept: '', running: 'wait', awaiting: 'wait', blocked: 'wait', failed: 'bad',
  suspended: 'bad', unread: 'bad', crashed: 'bad', lost: 'bad', begun: 'wait'};
let shown = '', drawn = [];

function el(name, attributes, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) if (value != null) made.setAttribute(key, value);
  made.append(...inside.filter(one => one != null));
  return made;
}
function draw(name, attributes, ...inside) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inside);
  return made;
}
const percent = share => (100 * share).toFixed(2) + ' %';
const points = share => (share < 0 ? '\u2212' : '+') + Math.abs(100 * share).toFixed(2);
const when = iso => iso ? iso.slice(0, 16).replace('T', ' ') : '';
const code = text => el('code', {}, text || '');
const quiet = text => el('span', {class: 'quiet'}, text);
const state = text => el('span', {class: TONE[text] || ''}, text);
const link = (to, text) => el('a', {href: '#' + to.map(encodeURIComponent).join('/')}, text);
const bytes = n => n < 1e3 ? n + ' B' : n < 1e6 ? (n / 1e3).toFixed(1) + ' kB' : (n / 1e6).toFixed(1) + ' MB';
const span = s => s == null ? '' : s < 100 ? s.toFixed(1) + ' s' : s < 6000 ? (s / 60).toFixed(1) + ' min' : (s / 3600).toFixed(1) + ' h';
const headers = () => at('token').value ? {authorization: 'Bearer ' + at('token').value} : {};

function table(heads, rows) {
  const cell = (name, one, head) => el(name, {class: head.split('|')[1]}, ...(Array.isArray(one) ? one : [one ?? '']));
  return el('div', {class: 'scroll'}, el('table', {},
    el('thead', {}, el('tr', {}, ...heads.map(head => cell('th', head.split('|')[0], head.endsWith('|n') ? head : '')))),
    el('tbody', {}, ...rows.map(row => el('tr', {}, ...row.map((one, i) => cell('td', one, heads[i])))))));
}
function facts(pairs) {
  return el('dl', {}, ...pairs.filter(([, one]) => one != null && one !== '').flatMap(
    ([name, one]) => [el('dt', {}, name), el('dd', {}, ...(Array.isArray(one) ? one : [one]))]));
}
const share = one => one ? [percent(one.share), quiet(` ${percent(one.low)} to ${percent(one.high)}`)] : '';
const notice = text => text ? el('p', {class: 'notice'}, text) : null;
const more = (title, ...inside) => el('details', {'data-key': title}, el('summary', {}, title), ...inside);

// Jobs

function jobs(told) {
  document.title = 'rrmsdk schedule';
  return [
    el('h1', {}, told.jobs.length === 1 ? '1 job' : told.jobs.length + ' jobs'),
    ...Object.entries(told.troubles).map(([file, why]) => notice(`${file}: ${why}`)),
    table(['job', 'state', 'newest run', 'why|says', 'champion|t', 'next|t'], told.jobs.map(one => [
      link([one.job], one.job), [state(one.state), one.pid ? quiet(` process ${one.pid}`) : null],
      one.run ? link([one.job, one.run], one.run) : '', one.trouble || one.held || one.why || '',
      one.champion ? code((one.champion.commit || '').slice(0, 12)) : '', one.next[0] || ''])),
    told.jobs.length ? null : el('p', {}, 'No job file was read, and nothing has run: rrmsdk job init writes a job.')];
}

function job(told) {
  document.title = told.job + ' - rrmsdk schedule';
  const scored = told.runs.filter(one => one.challenger).reverse();
  return [
    el('h1', {}, told.job), notice(told.trouble),
    facts([
      ['state', [state(told.state), told.why ? ': ' + told.why : '', told.pid ? quiet(` process ${told.pid}`) : null]],
      ['held back', told.held], ['champion', told.champion ? [code(told.champion.commit), ' of ', told.repo || ''] : 'none yet'],
      ['next', told.next.length ? told.next.flatMap(one => [one, el('br')]) : 'no slot'], ['file', told.file ? code(told.file) : null]]),
    ...(scored.length ? [el('h2', {}, 'Champion and challengers'),
      el('p', {class: 'quiet'}, 'Line: the champion of the time, with its 95 % interval. Points: challengers, filled where promoted, ' +
        'grey where the run did not end by a decision.' + (told.floors.clean || told.floors.robust ? ' Dashed: the floor.' : '')),
      ...['robust', 'clean'].map(what => chart(box => history(box, told, scored, what)))] : []),
    el('h2', {}, 'Runs'),
    told.runs.length ? table(['run', 'begun (UTC)|t', 'state', 'robust|n', 'clean|n', 'worked|n', 'why|says'], told.runs.map(one => [
      link([told.job, one.run], one.run), when(one.begun), [state(one.state), one.pin ? quiet(' pinned') : null],
      one.challenger?.robust ? percent(one.challenger.robust.share) : '',
      one.challenger?.clean ? percent(one.challenger.clean.share) : '', span(one.seconds), one.why || one.says || one.cause]))
      : el('p', {class: 'quiet'}, 'None yet.'),
    Object.keys(told.about).length ? el('h2', {}, 'What the job says') : null,
    facts(Object.entries(told.about).map(([name, lines]) => [name, lines.flatMap(line => [line, el('br')])]))];
}

// A run

function run(told) {
  document.title = `${told.job} ${told.run} - rrmsdk schedule`;
  const longest = Math.max(...told.stages.map(one => one.seconds || 0), 1e-9);
  return [
    el('h1', {}, `${told.job} ${told.run}`),
    facts([
      ['state', [state(told.state), told.why ? ': ' + told.why : '']], ['began because', told.says || told.cause],
      ['cause', code(told.cause)], ['begun', when(told.begun) + ' UTC'], ['ended', told.ended ? when(told.ended) + ' UTC' : null],
      ['pinned', told.pin], ['promoted as', told.commit ? code(told.commit) : null],
      ['robust', share(told.challenger?.robust)], ['clean', share(told.challenger?.clean)],
      ['judged by', told.challenger?.attack ? `${told.challenger.attack}, ${told.challenger.threat}, ${told.challenger.images} images` : null]]),
    el('h2', {}, 'Stages'),
    told.stages.length ? table(['stage', 'state', 'seconds|n', '|bar', 'attempts|n', 'made|says'], told.stages.map(one => [
      one.stage, state(one.state), one.seconds == null ? '' : one.seconds.toFixed(1), bar(one.seconds, longest), one.attempts || '',
      [code((one.digest || '').slice(0, 16)), ...one.crashes.map(said => el('div', {class: 'bad'}, said))]]))
      : el('p', {class: 'quiet'}, 'None yet.'),
    ...told.decisions.flatMap(decision), ...(told.curve ? curve(told.curve) : []),
    el('h2', {}, 'Artefacts'),
    told.artefacts.length ? table(['stage', 'sha256|says', 'files|says'], told.artefacts.map(one => [
      one.stage, artefact(told.job, one), one.there ? files(told.job, one) : quiet('removed by rrmsdk gc')]))
      : el('p', {class: 'quiet'}, 'None yet.'),
    more('Events', table(['at (UTC)|t', 'what', 'told|says'], told.events.map(one => [
      when(one.at), one.kind, code(JSON.stringify(one.told))]))),
    told.printed ? more('What its process printed last', el('pre', {}, told.printed)) : null];
}
function bar(seconds, longest) {
  if (seconds == null) return '';
  const made = el('i');
  made.style.width = 100 * seconds / longest + '%';
  return made;
}
function decision(one) {
  const verdict = {promote: 'good', approve: 'wait'}[one.verdict] || '';
  return [
    el('h2', {}, 'Decision: ', el('span', {class: verdict}, one.verdict)), el('p', {}, one.says),
    one.checks.length ? table(['', 'rule', 'interval|n', 'bound|n', 'says|says'], one.checks.map(check => {
      const told = check.name.endsWith('margin') ? points : percent;
      return [el('span', {class: check.passed ? 'good' : 'bad'}, check.passed ? 'kept' : 'broken'), check.name,
        check.interval ? check.interval.map(told).join(' to ') : '', check.bound == null ? '' : told(check.bound), check.says];
    })) : null,
    one.lost ? notice(`The record ${one.file} is no longer there, or cannot be read: this is what the journal says of it.`) : null,
    facts([
      ['challenger', code(one.new)], ['champion', one.old ? code(one.old) : 'none'], ['its commit', one.champion && code(one.champion)],
      ['images', one.count ? [one.count + ', ', code(one.images)] : null], ['attacks', one.suite],
      ['record', one.sha256 ? [one.file + ' ', code(one.sha256)] : null]])];
}
const place = (job, one) => `api/jobs/${encodeURIComponent(job)}/objects/${one.digest}`;
const artefact = (job, one) => el('a', {href: place(job, one)}, code(one.digest));
function files(job, one) {
  return one.files.slice(0, 40).flatMap(file => [
    el('a', {href: place(job, one) + '/file?name=' + encodeURIComponent(file.name), download: ''}, file.name || 'the file'),
    quiet(` ${bytes(file.bytes)}`), el('br')]);
}

// Charts

function chart(into) {
  const box = el('div');
  drawn.push(() => box.replaceChildren(into(box.clientWidth || 600)));
  return box;
}
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(one => one * power).find(one => one >= rough), found = [];
  for (let one = Math.ceil(low / step) * step; one <= high + step * 1e-9; one += step) found.push(one);
  return [found, Math.max(0, -Math.floor(Math.log10(step * 100)))];
}
function days(low, high, count) {
  const day = 864e5, long = (high - low) / count, found = [];
  if (long > 20 * day) {
    const months = [1, 2, 3, 6, 12, 24, 60].find(one => one * 30 * day >= long) || 120, date = new Date(low);
    for (let one = Date.UTC(date.getUTCFullYear(), 0), n = 0; one <= high; one = Date.UTC(date.getUTCFullYear(), ++n * months))
      if (one >= low) found.push([one, new Date(one).toISOString().slice(0, 7)]);
    return found;
  }
  const step = [1 / 24, 1 / 4, 1, 2, 7, 14, 28].map(one => one * day).find(one => one >= long) || 28 * day;
  for (let one = Math.ceil(low / step) * step; one <= high; one += step) {
    const iso = new Date(one).toISOString();
    found.push([one, step < day ? iso.slice(5, 16).replace('T', ' ') : iso.slice(5, 10)]);
  }
  return found;
}
function frame(width, name, title, [low, high], [from, to], marks) {
  const height = 190, left = 52, right = 14, top = 26, bottom = 24;
  const x = one => left + (width - left - right) * (to > from ? (one - from) / (to - from) : .5);
  const y = one => top + (height - top - bottom) * (high - one) / (high - low);
  const svg = draw('svg', {class: name, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': title});
  const [found, digits] = ticks(low, high, 5);
  for (const one of found) svg.append(
    draw('line', {class: 'grid', x1: left, x2: width - right, y1: y(one), y2: y(one)}),
    draw('text', {x: left - 6, y: y(one) + 4, 'text-anchor': 'end'}, (100 * one).toFixed(digits) + ' %'));
  for (const [one, text] of marks) svg.append(draw('text', {x: x(one), y: height - 6, 'text-anchor': 'middle'}, text));
  svg.append(draw('text', {x: 0, y: 14}, title));
  return {svg, x, y, edge: width - right};
}
function range(shares, floor) {
  const low = Math.min(...shares.map(one => one.low), ...(floor ? [floor] : []));
  const high = Math.max(...shares.map(one => one.high)), room = Math.max((high - low) * .08, .002);
  return [Math.max(0, low - room), Math.min(1, high + room)];
}
function history(width, told, runs, what) {
  const found = runs.filter(one => one.challenger[what]), now = Date.now();
  if (!found.length) return '';
  const time = one => Date.parse(one.ended || one.begun), own = Object.fromEntries(found.map(one => [one.run, one.challenger[what]]));
  const from = Math.min(...found.map(time)), to = Math.max(now, ...found.map(time)), floor = told.floors[what];
  const margin = (to - from) * .02;
  const {svg, x, y, edge} = frame(width, what, `${what} accuracy`, range(found.map(one => one.challenger[what]), floor),
    [from - margin, to + margin], days(from, to, width / 90));
  if (floor) svg.append(draw('line', {class: 'floor', x1: 52, x2: edge, y1: y(floor), y2: y(floor)}));
  let path = '';
  told.champions.forEach((one, i, all) => {
    const score = own[one.run], begin = x(Date.parse(one.at)), end = x(i + 1 < all.length ? Date.parse(all[i + 1].at) : to);
    if (!score) return;
    svg.append(draw('rect', {class: 'band', x: begin, width: Math.max(0, end - begin), y: y(score.high), height: y(score.low) - y(score.high)}));
    path += `${own[all[i - 1]?.run] ? 'L' : 'M'}${begin} ${y(score.share)}H${end}`;
  });
  if (path) svg.append(draw('path', {class: 'line', d: path}));
  for (const one of found) {
    const score = one.challenger[what], left = x(time(one)), kind = one.state === 'promoted' ? 'promoted' : one.verdict ? '' : 'other';
    svg.append(draw('a', {href: `#${encodeURIComponent(told.job)}/${one.run}`, class: 'point ' + kind},
      draw('title', {}, `${one.run}, ${when(one.ended || one.begun)}: ${one.state}, ${what} ${percent(score.share)} (${percent(score.low)} to ${percent(score.high)})`),
      draw('line', {x1: left, x2: left, y1: y(score.low), y2: y(score.high)}), draw('circle', {cx: left, cy: y(score.share), r: 3.5})));
  }
  return svg;
}
function curve(told) {
  const sides = [...(told.champion.length ? [['champion', told.champion]] : []), ['challenger', told.points]];
  return [el('h2', {}, 'Robust accuracy over the radius'),
    el('p', {class: 'quiet'}, `${told.norm}, ${told.attack}, ${told.images} images. ${told.note}`
      + (told.champion.length ? ' Dashed: the champion that it met.' : '')),
    chart(width => {
      const last = told.points.at(-1).at, marks = told.points.filter((one, i) => i % Math.ceil(told.points.length * 60 / width) === 0);
      const seen = sides.map(([who, points]) => [who, points.filter(one => one.at <= last)]);
      const {svg, x, y} = frame(width, 'robust', 'robust accuracy', range(seen.flatMap(([, points]) => points)), [0, last],
        marks.map(one => [one.at, one.eps]));
      if (told.trained != null && told.trained <= last)
        svg.append(draw('line', {class: 'floor', x1: x(told.trained), x2: x(told.trained), y1: 26, y2: 166}));
      for (const [who, points] of seen) {
        svg.append(draw('path', {class: 'line ' + who, d: points.map((one, i) => `${i ? 'L' : 'M'}${x(one.at)} ${y(one.share)}`).join('')}));
        for (const one of points) svg.append(draw('g', {class: who === 'challenger' ? 'point promoted' : 'point'},
          draw('title', {}, `${who}, ${one.eps}: ${percent(one.share)} (${percent(one.low)} to ${percent(one.high)})`),
          draw('line', {x1: x(one.at), x2: x(one.at), y1: y(one.low), y2: y(one.high)}),
          draw('circle', {cx: x(one.at), cy: y(one.share), r: 3.5})));
      }
      return svg;
    })];
}

// What is shown

async function ask(path) {
  const answer = await fetch(path, {headers: headers()}), text = await answer.text();
  if (answer.status === 401) at('door').hidden = false;
  if (!answer.ok) throw new Error(JSON.parse(text).error);
  at('door').hidden = true;
  return text;
}
async function show(anew) {
  const [name, id] = location.hash.slice(1).split('/').filter(Boolean).map(decodeURIComponent);
  const path = 'api/jobs' + (name ? '/' + encodeURIComponent(name) : '') + (id ? '/runs/' + encodeURIComponent(id) : '');
  try {
    const text = await ask(path), told = JSON.parse(text);
    at('error').hidden = true;
    at('at').textContent = `as of ${new Date().toISOString().slice(0, 19).replace('T', ' ')} UTC`;
    delete told.at;
    const now = path + JSON.stringify(told);
    if (now === shown && !anew) return;
    const open = new Set([...document.querySelectorAll('details[open]')].map(one => one.dataset.key)), same = shown.startsWith(path + '{');
    shown = now;
    drawn = [];
    at('path').replaceChildren(...(name ? ['/ ', link([name], name)] : []), ...(id ? [' / ' + id] : []));
    at('main').replaceChildren(...(id ? run : name ? job : jobs)(told).filter(one => one != null));
    for (const one of document.querySelectorAll('details')) one.open = same && open.has(one.dataset.key);
    drawn.forEach(one => one());
  } catch (error) {
    at('error').textContent = error.message;
    at('error').hidden = false;
  }
}
async function save(anchor) {  // a link cannot carry the token
  try {
    const answer = await fetch(anchor.href, {headers: headers()});
    if (!answer.ok) throw new Error((await answer.json()).error);
    const url = URL.createObjectURL(await answer.blob());
    el('a', {href: url, download: new URL(anchor.href).searchParams.get('name')?.split('/').at(-1) || 'artefact.json'}).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  } catch (error) {
    at('error').textContent = error.message;
    at('error').hidden = false;
  }
}
document.addEventListener('click', event => {
  const anchor = event.target.closest?.('a[href^="api/"]');
  if (anchor && at('token').value) { event.preventDefault(); save(anchor); }
});
at('door').addEventListener('submit', event => { event.preventDefault(); show(true); });
addEventListener('hashchange', () => { scrollTo(0, 0); show(true); });
addEventListener('resize', () => drawn.forEach(one => one()));
setInterval(() => { if (!document.hidden) show(false); }, EVERY);
show(true);
