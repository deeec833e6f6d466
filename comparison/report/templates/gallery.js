"use strict";
(() => {
  const byId = id => document.getElementById(id), images = JSON.parse(byId("data").textContent);
  const level = Number(byId("data").dataset.level);
  const percent = p => `${(100 * p).toFixed(p > 0 && p < 0.001 ? 2 : 1)} %`;
  const key = item => `${item.world}/${item.image}`;
  let chosen = images[0];

  const tile = (span, item, column, row, alt) => {
    span.className = span.className.includes("tile") ? span.className : "tile";
    span.style.backgroundImage = `url("gallery/${encodeURIComponent(item.file)}")`;
    span.style.backgroundSize = `calc(${item.columns} * var(--size)) calc(${2 * item.methods.length} * var(--size))`;
    span.style.backgroundPosition = `calc(${-column} * var(--size)) calc(${-row} * var(--size))`;
    if (alt) { span.setAttribute("role", "img"); span.setAttribute("aria-label", alt); } else span.setAttribute("aria-hidden", "true");
    return span;
  };
  const element = (name, text = "") => { const found = document.createElement(name); found.textContent = text; return found; };
  const said = step => step.judges === null ? "judges have no say" : step.judges ? "judges see the target" : "judges do not see the target";
  const judged = step => step.judges === null ? "" : step.judges ? "✓" : "✗";
  const first = method => { const at = method.path.findIndex(step => step.confidence >= level); return at < 0 ? method.path.length - 1 : at; };

  const show = (m, k) => {
    const method = chosen.methods[m], step = method.path[k];
    tile(byId("before"), chosen, 0, 0, `The original, ${chosen.source}`);
    tile(byId("after"), chosen, k + 1, 2 * m, `What ${method.name} made of it towards ${chosen.target}`);
    tile(byId("change"), chosen, k + 1, 2 * m + 1, `Where ${method.name} changed it`);
    byId("largest").textContent = `Σ|δ| up to ${step.largest}`;
    byId("said").textContent = `${method.name}, strength ${step.strength}: ${percent(step.confidence)} ${chosen.target}`
      + `${method.own ? " by a classifier of its own" : ""}, ${said(step)}; mean |x′ − x| ${step.change}; ${step.status}`;
    for (const button of document.querySelectorAll("#paths button"))
      button.setAttribute("aria-pressed", String(button.dataset.at === `${m}/${k}`));
    const place = [chosen.world, chosen.image, method.name, step.strength];
    history.replaceState(null, "", `#${place.map(encodeURIComponent).join("/")}`);  // a name may hold a slash
  };

  const choose = (item, at = null) => {
    chosen = item;
    byId("chosen").textContent = `${item.world}, ${item.classifier}: ${item.source} → ${item.target} (${item.image})`;
    for (const button of document.querySelectorAll("#images button"))
      button.setAttribute("aria-pressed", String(button.dataset.key === key(item)));
    const rows = item.methods.map((method, m) => {
      const row = element("tr"), head = element("th", method.name + (method.own ? " †" : ""));
      head.scope = "row";
      row.append(head, ...method.path.map((step, k) => {
        const cell = element("td"), button = element("button");
        button.type = "button";
        button.dataset.at = `${m}/${k}`;
        button.setAttribute("aria-label", `${method.name}, strength ${step.strength}, ${percent(step.confidence)} ${item.target}, ${said(step)}`);
        button.append(tile(element("span"), item, k + 1, 2 * m), tile(element("span"), item, k + 1, 2 * m + 1),
          element("span", `${percent(step.confidence)} ${judged(step)}`));
        button.addEventListener("click", () => show(m, k));
        cell.append(button);
        return cell;
      }));
      return row;
    });
    byId("paths").replaceChildren(...rows);
    show(...(at ?? [0, first(item.methods[0])]));
  };

  byId("images").append(...images.map(item => {
    const entry = element("li"), button = element("button");
    button.type = "button";
    button.dataset.key = key(item);
    button.setAttribute("aria-label", `${item.world}, ${item.source} to ${item.target}, ${item.image}`);
    button.append(tile(element("span"), item, 0, 0));
    button.addEventListener("click", () => choose(item));
    entry.append(button);
    return entry;
  }));
  byId("cut").addEventListener("input", event => byId("viewer").querySelector(".stack").style.setProperty("--cut", `${event.target.value}%`));

  const follow = () => {
    let wanted = [];
    try { wanted = location.hash.slice(1).split("/").map(decodeURIComponent); } catch { /* no such place */ }
    const [world, image, name, strength] = wanted, item = images.find(other => other.world === world && other.image === image);
    if (!item) return false;
    const m = item.methods.findIndex(method => method.name === name);
    const k = m < 0 ? -1 : item.methods[m].path.findIndex(step => String(step.strength) === strength);
    choose(item, k < 0 ? null : [m, k]);
    return true;
  };
  addEventListener("hashchange", follow);
  if (!follow()) choose(images[0]);
})();
