// Search of the site. The index is a script, so that it is found in a folder on disk too, where nothing can be fetched.
(() => {
  "use strict";
  const here = document.currentScript.src, root = here.replace(/site_libs\/search\.js.*$/, "");
  const low = (text) => text.toLowerCase().replace(/-/g, " "); // as long as the text itself
  const words = (text) => low(text).split(/[^\p{L}\p{N}_]+/u).filter(Boolean);
  const escaped = (text) => text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" }[c]));
  const starts = (word) => new RegExp("(?<![\\p{L}\\p{N}])" + word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "gu");

  // What a word, and the whole question as a phrase, is worth in each place
  const WORTH = { title: [8, 20], about: [8, 20], name: [6, 20], heading: [5, 12], text: [0.5, 3] };

  const value = (place, text, patterns, phrase) => {
    const [each, whole] = WORTH[place];
    const hits = patterns.map((p) => (place === "text" ? Math.min(4, (text.match(p) || []).length) : +(text.search(p) >= 0)));
    const score = each * hits.reduce((a, b) => a + b, 0);
    return { score: score + (phrase && text.includes(phrase) ? whole : 0) + (text === phrase ? whole : 0), found: hits.map(Boolean) };
  };

  const search = (pages, question, limit = 12) => {
    const asked = words(question), phrase = asked.join(" "), patterns = asked.map(starts);
    if (!asked.length) return [];
    const all = [];
    for (const page of pages) {
      const name = low(page.href.replace(/^.*\/|\.html$/g, ""));
      const whole = [value("title", low(page.title), patterns, phrase), value("about", low(page.about), patterns, phrase),
        value("name", name, patterns, phrase), value("name", page.number, patterns, phrase)];
      const teaches = /^\d+$/.test(page.number) ? 1.5 : 1; // a page with a number and no letter explains its subject
      const ofPage = teaches * whole.reduce((a, v) => a + v.score, 0);
      const own = [];
      page.sections.forEach(([anchor, heading, text], i) => {
        const parts = [value("heading", low(heading), patterns, phrase), value("text", low(text), patterns, phrase)];
        if (!asked.every((_, k) => [...whole, ...parts].some((v) => v.found[k]))) return;
        const inside = parts.reduce((a, v) => a + v.score, 0);
        if (inside || !i) own.push({ page, anchor, heading, text, score: inside + (i ? ofPage / 2 : ofPage) });
      });
      all.push(...own.sort((a, b) => b.score - a.score).slice(0, 2));
    }
    return all.sort((a, b) => b.score - a.score).slice(0, limit);
  };

  const snippet = (text, asked) => {
    const at = asked.map((w) => low(text).search(starts(w))).filter((i) => i >= 0);
    const from = Math.max(0, (at.length ? Math.min(...at) : 0) - 60);
    let out = escaped(text.slice(from, from + 220));
    asked.filter((w) => w.length > 1).forEach((w) => { out = out.replace(new RegExp(starts(w).source, "giu"), "<mark>$&</mark>"); });
    return (from ? "…" : "") + out;
  };

  const shown = (hit, asked) => {
    const number = hit.page.number ? `<span class="page-number">${hit.page.number}</span> ` : "";
    return `<a class="search-result" href="${root}${hit.page.href}${hit.anchor ? "#" + hit.anchor : ""}">` +
      `<div class="search-result-title">${number}${escaped(hit.page.title)}</div>` +
      `<div class="search-result-section">${escaped(hit.heading || hit.page.about)}</div>` +
      `<div class="search-result-text">${snippet(hit.text, asked)}</div></a>`;
  };

  let loading = null;
  const load = () => loading || (loading = new Promise((done) => {
    const script = document.createElement("script");
    script.src = root + "site_libs/search-index.js";
    script.onload = () => done(window.searchPages);
    document.head.append(script);
  }));
  window.searchSite = async (question) => search(await load(), question);

  document.querySelectorAll(".site-search").forEach((box) => {
    const input = box.querySelector("input"), results = box.querySelector(".site-search-results");
    let active = -1;
    const hide = () => results.classList.remove("show");
    const run = async () => {
      const question = input.value.trim();
      if (question.length < 2) return hide();
      const hits = await window.searchSite(question);
      results.innerHTML = hits.map((h) => shown(h, words(question))).join("") || '<div class="search-none">Nothing found</div>';
      results.classList.add("show");
      active = -1;
    };
    input.addEventListener("input", run);
    input.addEventListener("focus", () => { load(); run(); });
    input.addEventListener("keydown", (e) => {
      const items = [...results.querySelectorAll(".search-result")];
      if (e.key === "Escape") { hide(); input.blur(); }
      if (!items.length || !["ArrowDown", "ArrowUp", "Enter"].includes(e.key)) return;
      e.preventDefault();
      if (e.key === "Enter") return (items[active] || items[0]).click();
      active = (active + (e.key === "ArrowDown" ? 1 : -1) + items.length) % items.length;
      items.forEach((it, i) => it.classList.toggle("active", i === active));
      items[active].scrollIntoView({ block: "nearest" });
    });
    document.addEventListener("click", (e) => { if (!box.contains(e.target)) hide(); });
    document.addEventListener("keydown", (e) => {
      const typing = /^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName);
      if ((e.key === "/" && !typing) || ((e.ctrlKey || e.metaKey) && e.key === "k")) { e.preventDefault(); input.focus(); }
    });
  });
})();
