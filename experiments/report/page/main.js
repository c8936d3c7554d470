// Puts the views together: each appears where the page holds something for it.

const island = JSON.parse(byId("data").textContent);
const report = (window.report = {});

function shown(id) {
  const section = byId(id);
  section.hidden = false;
  return section;
}

if (island.planning) {
  const { planning, rivals } = island, views = [];
  report.schedules = new Schedules(planning);
  shown("cost");
  shown("matter");
  if (report.schedules.scale.length) {
    shown("front");
    views.push(new FrontView(planning, rivals, report.schedules, (plan) => report.editor.load(plan)));
  }
  report.matter = new MatterView(report.schedules);
  views.push(report.matter);
  report.editor = new Editor(planning, report.schedules, (plan) => views.forEach((view) => view.show(plan)));
  for (const [id, words] of Object.entries(planning.notes)) byId(id).textContent = words;
  if (planning.judged.length >= 5) {
    shown("trust");
    report.trust = new TrustView(planning.judged, report.schedules);
    byId("trust-note").textContent = `${planning.judged.length} plans; rank correlation ${report.trust.correlation.toFixed(2)} between predicted and measured, over all numbers of computed steps together`;
  }
}
if (island.maps.entries.length) {
  shown("redundant");
  report.map = new Heatmap(island.maps);
}
if (island.bands.length) {
  shown("bands");
  report.bands = new BandsView(island.bands);
}
if (island.videos) {
  shown("videos");
  report.videos = new VideosView(island.videos);
}
byId("sections").append(...[...document.querySelectorAll("main > section")].filter((section) => !section.hidden)
  .map((section) => make("a", { href: "#" + section.id }, section.querySelector("h2").textContent)));
