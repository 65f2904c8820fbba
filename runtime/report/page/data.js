// The data of the report, what is chosen of them, and how values are written.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const data = read("data");
const pictures = read("pictures");
const count = data.name.length;
const GOOD = 0, ANOMALOUS = 1, NOT_JUDGED = 2;
const WORDS = ["good", "anomalous", "not judged"];
const SIGNS = ["●", "▲", "–"]; // a shape beside the colour, for who cannot tell colours
const late = new Set(data.late);
const byId = (id) => document.getElementById(id);

// A part's place on the axis of time: seconds, or its number where no time was recorded.
const place = (i) => (data.timed ? data.time[i] : i + 1);
// Parts with several limits are only comparable as multiples of their limit.
const scored = (i) => data.score[i] !== null && data.verdict[i] !== NOT_JUDGED;
const judged = [...Array(count).keys()].filter(scored);
const limits = new Set(judged.map((i) => data.limit[i]).filter((limit) => limit !== null));
const relative = limits.size > 1 && judged.every((i) => data.limit[i] > 0);
const value = (i) => (relative ? data.score[i] / data.limit[i] : data.score[i]);
const limitInForce = relative ? 1 : limits.size === 1 ? [...limits][0] : null;
const excess = (i) => (data.score[i] === null ? -1 : data.limit[i] ? data.score[i] / data.limit[i] : data.score[i]);

const state = {
  category: -1, from: -Infinity, to: Infinity, // choose what everything shows
  verdict: "all", order: "worst", find: "", page: 0, view: "map", // choose what the list shows
  limit: limitInForce,
};

const chosen = () => {
  const found = [];
  for (let i = 0; i < count; i++) {
    const at = place(i);
    if ((state.category < 0 || data.category[i] === state.category) && at >= state.from && at <= state.to) found.push(i);
  }
  return found;
};

const whole = new Intl.NumberFormat("en");
const percent = (part, all) => (all ? `${((100 * part) / all).toFixed(part && part / all < 0.1 ? 1 : 0)} %` : "–");
const short = (number) => (number === null || number === undefined ? "–" : Number(number.toPrecision(3)).toString());
const plural = (n, word) => `${whole.format(n)} ${word}${n === 1 ? "" : "s"}`;
const format = (options) => { const f = new Intl.DateTimeFormat("en-GB", options); return (s) => f.format(new Date(1000 * s)); };
const asTime = format({ weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const asDay = format({ day: "numeric", month: "short" });
const asDate = format({ day: "numeric", month: "short", year: "numeric" });
const asClock = format({ hour: "2-digit", minute: "2-digit" });
const showPlace = (at) => (data.timed ? asTime(at) : `part ${whole.format(Math.round(at))}`);

const quantile = (sorted, q) => {
  if (!sorted.length) return null;
  const at = q * (sorted.length - 1), low = Math.floor(at), high = Math.ceil(at);
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
};
const ascending = (values) => Float64Array.from(values).sort();
