"""JavaScript that says how fast the dashboard's page is; its benchmark and the browser's tests run it."""

# Milliseconds from the start of the page to its first view; nothing before that.
FIRST_VIEW = "return (performance.getEntriesByName('first-view')[0] || {}).startTime"
# From then on `window.worst` is the longest time between two frames, in milliseconds.
FRAMES = """
window.worst = 0;
let before;
const frame = (now) => {
  window.worst = Math.max(window.worst, now - before);
  before = now;
  requestAnimationFrame(frame);
};
requestAnimationFrame((now) => { before = now; requestAnimationFrame(frame); });
"""
